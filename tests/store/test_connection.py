"""How Redis is reached: errors in our words, repeats until a deadline, connections that are shared and closed."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.exceptions
from support.seeds import new_store, seed_agent, seed_pool, seed_worker
from support.server import start_server
from support.wait import wait_until_sync

from agentpool.errors import RedisUnavailable
from agentpool.redis_server import EmbeddedServer
from agentpool.store import Store
from agentpool.store.connection import SyncConnection, translate


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that a test may harm."""
    server = start_server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def own_store(own_server: EmbeddedServer) -> AsyncIterator[Store]:
    async with new_store(own_server.url) as store:
        yield store


def kill(server: EmbeddedServer) -> None:
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    wait_until_sync(lambda: not server.is_alive())


async def complaint(url: str, **options: float) -> str:
    """Return what a call on this URL complains of."""
    async with new_store(url, **({"command_timeout": 0.3} | options)) as store:
        with pytest.raises(RedisUnavailable) as caught:
            await store.pools.observe("p")
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# -- errors -----------------------------------------------------------------------------------------------------


async def test_wrong_password_is_one_clear_line_without_it(redis_url: str) -> None:
    path = redis_url.removeprefix("unix://")
    for url in (f"unix://somebody:hunter2@{path}", f"unix://{path}?username=somebody&password=hunter2"):
        begun = time.monotonic()
        text = await complaint(url, command_timeout=5.0)
        assert "refused the login" in text
        assert "Check user and password" in text
        assert "hunter2" not in text
        assert "\n" not in text
        assert time.monotonic() - begun < 2, "a wrong password is not tried again"


async def test_missing_password_is_told(own_server: EmbeddedServer, own_store: Store) -> None:
    await own_store.connection.redis.config_set("requirepass", "hunter2")
    assert "refused the login" in await complaint(own_server.url)
    await own_store.connection.redis.config_set("requirepass", "")


async def test_forbidden_command_is_told(own_server: EmbeddedServer, own_store: Store) -> None:
    await own_store.connection.redis.execute_command("ACL", "SETUSER", "u", "on", ">pw", "+@read", "~*")
    path = own_server.url.removeprefix("unix://")
    assert "does not permit this" in await complaint(f"unix://u:pw@{path}")


async def test_absent_server_is_told(tmp_path: Path) -> None:
    begun = time.monotonic()
    text = await complaint(f"unix://{tmp_path}/none.sock")
    assert "does not answer" in text
    assert "agentpool-master check" in text
    assert "\n" not in text
    assert 0.1 < time.monotonic() - begun < 2, "tried until the deadline"


@pytest.mark.parametrize("url", ["http://x", "redis://host:port/0", "nonsense", "redis://u:hunter2@[x/0", ""])
async def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(RedisUnavailable) as caught:
        Store.open(url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(RedisUnavailable):
        SyncConnection(url)


async def test_full_memory_is_told(own_store: Store) -> None:
    await seed_pool(own_store)
    await own_store.connection.redis.config_set("maxmemory", 1)
    with pytest.raises(RedisUnavailable, match=r"takes no new work; .*Raise maxmemory"):
        await seed_agent(own_store)
    await own_store.connection.redis.config_set("maxmemory", 0)


async def test_too_few_replicas_are_told_but_reads_go_on(own_store: Store) -> None:
    await seed_pool(own_store)
    await own_store.connection.redis.config_set("min-replicas-to-write", 1)
    with pytest.raises(RedisUnavailable, match="takes no writes"):
        await seed_agent(own_store)
    with pytest.raises(RedisUnavailable, match="takes no writes"):
        await own_store.agents.terminate("p/a1")
    assert (await own_store.pools.observe("p")).pending == 0
    await own_store.connection.redis.config_set("min-replicas-to-write", 0)


async def test_a_replica_is_told_but_can_be_read(own_store: Store) -> None:
    await seed_pool(own_store)
    await own_store.connection.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(RedisUnavailable, match="writable primary"):
        await seed_agent(own_store)
    with pytest.raises(RedisUnavailable, match="writable primary"):
        await own_store.agents.terminate("p/a1")
    await own_store.connection.redis.execute_command("REPLICAOF", "NO", "ONE")
    assert await seed_agent(own_store) is None


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (
            redis.exceptions.ConnectionError("Error 24: Too many open files."),
            "no file descriptors left",
        ),
        (redis.exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "takes no writes"),
        (redis.exceptions.ResponseError("ERR unknown command"), "refused a command"),
        (redis.exceptions.TimeoutError("Timeout reading from socket"), "does not answer"),
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "does not answer"),
        (TimeoutError(), "TimeoutError"),
        (ConnectionRefusedError(111, "Connection refused"), "does not answer"),
    ],
)
def test_each_error_has_words(error: Exception, part: str) -> None:
    translated = translate(error, "redis://user:hunter2@host:6379/0")
    assert part in str(translated)
    assert "redis://user:***@host:6379/0" in str(translated)
    assert translated.code == "REDIS_UNAVAILABLE"


async def test_a_threads_connection_complains_the_same_way(tmp_path: Path) -> None:
    connection = SyncConnection(f"unix://:hunter2@{tmp_path}/none.sock", timeout=0.1)
    with pytest.raises(RedisUnavailable, match="does not answer") as caught:
        connection.call("beat_worker", "p", "w1", 0, "", 0, "", 0, 0)
    assert "hunter2" not in str(caught.value)
    connection.close()


# -- repeats ----------------------------------------------------------------------------------------------------


async def test_call_survives_a_restart_in_its_middle(own_server: EmbeddedServer, own_store: Store) -> None:
    await seed_pool(own_store)
    await seed_worker(own_store)
    kill(own_server)
    call = asyncio.create_task(seed_agent(own_store))
    await asyncio.sleep(0.05)
    assert not call.done()
    await asyncio.to_thread(own_server.start)
    assert await call == "w1"


async def test_calls_in_flight_while_the_server_dies_happen_once(own_server: EmbeddedServer, own_store: Store) -> None:
    await seed_pool(own_store)
    await seed_worker(own_store, capacity=1000)
    calls = [asyncio.create_task(seed_agent(own_store, f"a{i}")) for i in range(300)]
    await asyncio.sleep(0.02)
    kill(own_server)
    await asyncio.to_thread(own_server.start)
    assert set(await asyncio.gather(*calls)) == {"w1"}
    assert len(await own_store.agents.names("p")) == 300
    assert (await own_store.workers.all("p"))[0].available == 700


async def test_frozen_server_is_given_up_at_the_deadline_of_the_call(
    own_server: EmbeddedServer, own_store: Store
) -> None:
    await seed_pool(own_store)
    assert own_server.pid
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(RedisUnavailable, match="does not answer"):
            await own_store.connection.call("observe_pool", "p", timeout=0.2)
        assert time.monotonic() - begun < 1, "not only after the socket's own timeout"
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert (await own_store.pools.observe("p")).now_ms
    assert await seed_agent(own_store) is None


async def test_cancelled_call_spoils_no_connection(own_server: EmbeddedServer, own_store: Store) -> None:
    await seed_pool(own_store)
    assert own_server.pid
    os.kill(own_server.pid, signal.SIGSTOP)
    calls = [asyncio.create_task(own_store.connection.redis.echo(f"stale {i}")) for i in range(100)]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    os.kill(own_server.pid, signal.SIGCONT)
    answers = await asyncio.gather(*(own_store.connection.redis.echo(str(i)) for i in range(100)))
    assert answers == [str(i) for i in range(100)]


async def test_many_callers_share_few_connections(redis_url: str) -> None:
    async with new_store(redis_url) as store:
        await seed_pool(store)
        views = await asyncio.gather(*(store.pools.observe("p") for _ in range(1000)))
        assert len(views) == 1000
        clients = await store.connection.redis.client_list()
        assert len([client for client in clients if client["db"] == "0"]) <= 70


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_server_that_is_away_is_not_stormed(accepts: bool) -> None:
    """Five hundred callers wait for two seconds: what reaches the server is a few connections."""
    count = 0

    def count_and_close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writer.close()

    door = await asyncio.start_server(count_and_close, "127.0.0.1", 0)
    port = door.sockets[0].getsockname()[1]
    if not accepts:
        door.close()
        await door.wait_closed()
    async with new_store(f"redis://127.0.0.1:{port}", command_timeout=2.0) as store:
        connection, opened = store.connection, 0
        make = connection.redis.connection_pool.make_connection

        def counted() -> object:
            nonlocal opened
            opened += 1
            return make()

        connection.redis.connection_pool.make_connection = counted
        results = await asyncio.gather(
            *(connection.ask("PING", timeout=2.0) for _ in range(500)), return_exceptions=True
        )
    door.close()
    assert all(isinstance(result, RedisUnavailable) for result in results)
    assert 4 <= opened <= 30, opened
    assert count <= opened


async def test_store_can_be_closed_twice(redis_url: str) -> None:
    store = Store.open(redis_url)
    await store.pools.names()
    await store.close()
    await store.close()
