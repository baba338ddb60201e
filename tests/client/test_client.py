"""Connecting, and everything that only reads or is told to a pool."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_pool import POOL, TinyPool, tiny_pool
from support.wait import wait_until

import agentpool
from agentpool import (
    ConfigError,
    InvalidInput,
    PoolClosed,
    RedisUnavailable,
    UnknownAgent,
    UnknownPool,
    UnknownWorker,
    connect,
)
from agentpool.client import Client, RedisClient
from agentpool.protocol.events import Event


def test_importing_agentpool_is_cheap() -> None:
    code = "import sys, agentpool; print([m for m in ('redis', 'uvloop', 'click', 'psutil') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_client_loads_no_redis() -> None:
    """What is shared by all backends works without one of them."""
    code = "import sys, agentpool.client; print([m for m in ('redis', 'agentpool.store') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_error_is_exported() -> None:
    from agentpool import errors

    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert classes <= set(agentpool.__all__)
    assert all(issubclass(getattr(agentpool, name), agentpool.AgentPoolError) for name in classes)


async def test_a_client_must_be_open(redis_url: str) -> None:
    client = connect(redis_url)
    pool = client.pool(POOL)
    with pytest.raises(PoolClosed, match="async with"):
        await pool.stats()
    await client.open()
    await client.open()
    assert await client.pools() == []
    await client.close()
    await client.close()
    with pytest.raises(PoolClosed):
        await pool.stats()


async def test_a_client_can_be_opened_again(redis_url: str, tiny: TinyPool) -> None:
    client = connect(redis_url)
    for _ in range(2):
        await client.open()
        assert [info.pool_name for info in await client.pools()] == [POOL]
        await client.close()


@pytest.mark.parametrize("url", ["http://x", "nonsense", "redis://127.0.0.1:notaport"])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises((RedisUnavailable, ConfigError)):
        await connect(url).open()


async def test_no_embedded_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RedisUnavailable, match="agentpool-master"):
        await connect(data_dir=tmp_path).open()


async def test_the_embedded_server_of_a_data_directory_is_found(redis_server: object, redis_url: str) -> None:
    async with connect(data_dir=redis_server.data_dir) as client:  # type: ignore[attr-defined]
        assert await client.pools() == []


async def test_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentpool.store import Connection

    monkeypatch.setattr(
        Connection.__init__, "__kwdefaults__", {**Connection.__init__.__kwdefaults__, "command_timeout": 0.2}
    )
    with pytest.raises(RedisUnavailable, match="does not answer"):
        await connect("redis://127.0.0.1:1").open()


async def test_a_wrong_password(redis_url: str, tiny: TinyPool) -> None:
    await tiny.store.connection.redis.execute_command("ACL", "SETUSER", "guest", "on", ">right", "~*", "+@all")
    wrong = redis_url.replace("unix://", "unix://guest:wrong@")
    try:
        with pytest.raises(RedisUnavailable, match="refused the login") as caught:
            await connect(wrong).open()
        assert "wrong" not in str(caught.value).replace("wrong password", "")
    finally:
        await tiny.store.connection.redis.execute_command("ACL", "DELUSER", "guest")


async def test_a_client_on_someone_elses_store_leaves_it_open(tiny: TinyPool) -> None:
    await tiny.add_worker()
    client = RedisClient(tiny.store)
    assert await client.pool(POOL).run("Echo", 1, timeout=5) == 1
    await client.close()
    await client.close()
    assert await tiny.store.pools.names() == [POOL]
    assert await client.pool(POOL).run("Echo", 2, timeout=5) == 2
    await client.close()


# -- looking ----------------------------------------------------------------------------------------------------


async def test_stats_as_the_contract_defines_them(client: Client, tiny: TinyPool) -> None:
    for id in ("w1", "w2"):
        await tiny.add_worker(id)
    pool = client.pool(POOL)
    await asyncio.gather(*(pool.spawn("Echo", timeout=5) for _ in range(15)))
    stats = await pool.stats()
    assert (stats.process_count, stats.active_worker_processes, stats.total_capacity) == (2, 2, 20)
    assert (stats.used_capacity, stats.available_capacity) == (15, 5)
    assert (stats.agent_count, stats.utilization) == (15, 0.75)
    assert [one.pool_name for one in await client.stats()] == [POOL]
    assert sorted(worker.agent_count for worker in await pool.workers()) == [7, 8]


async def test_agents_can_be_filtered(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    await pool.spawn("Echo", id="a", tenant="acme", project="x", timeout=5)
    await pool.spawn("Echo", id="b", tenant="beta", timeout=5)
    assert [agent.agent_id for agent in await pool.agents()] == [f"{POOL}/a", f"{POOL}/b"]
    assert [agent.agent_id for agent in await pool.agents(tenant="beta")] == [f"{POOL}/b"]
    assert [agent.agent_id for agent in await pool.agents(project="x", status="idle")] == [f"{POOL}/a"]
    assert await pool.agents(status="pending") == []


async def test_events_of_one_pool_and_of_all(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker("w1")
    async with tiny_pool(tiny.store.connection.url, "other") as other:
        await other.add_worker("w2")
        one = [event async for event in client.pool(POOL).events()]
        assert {event.pool_name for event in one} == {POOL}
        every = [event async for event in client.events()]
        assert {event.pool_name for event in every} == {POOL, "other"}
        assert [event.at for event in every] == sorted(event.at for event in every)
        assert len([event async for event in client.events(limit=3)]) == 3
        assert len([event async for event in client.pool(POOL).events(limit=1)]) == 1


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3", None])
@pytest.mark.parametrize("follow", [False, True])
async def test_a_limit_of_events_that_cannot_be(client: Client, limit: Any, follow: bool) -> None:
    for source in (client, client.pool(POOL), client.pool("nonesuch")):
        with pytest.raises(InvalidInput, match="whole number of at least 1") as caught:
            await anext(source.events(limit=limit, follow=follow))
        assert caught.value.path == "$.limit"


@pytest.mark.parametrize("of_all", [False, True])
async def test_events_can_be_followed(client: Client, tiny: TinyPool, of_all: bool) -> None:
    source = client if of_all else client.pool(POOL)
    following = asyncio.ensure_future(_first(source.events(follow=True), "worker.ready"))
    await asyncio.sleep(0.1)
    await tiny.add_worker("w7")
    assert await asyncio.wait_for(following, 5) == "w7"


async def test_who_follows_comes_to_the_end_when_the_client_closes(redis_url: str, tiny: TinyPool) -> None:
    async with connect(redis_url) as client:
        seen: list[str] = []
        following = asyncio.ensure_future(_collect(client.pool(POOL).events(follow=True), seen))
        await asyncio.sleep(0.1)
        await tiny.add_worker("w7")
        await wait_until(lambda: "worker.ready" in seen)
    await asyncio.wait_for(following, 2)


async def _collect(events: AsyncIterator[Event], types: list[str]) -> None:
    async for event in events:
        types.append(event.type)


async def _first(events: AsyncIterator[Event], type: str) -> str:
    async for event in events:
        if event.type == type:
            return str(event.process_id)
    raise AssertionError


async def test_types_of_a_pool(client: Client, tiny: TinyPool) -> None:
    assert [info.name for info in await client.pool(POOL).types()] == ["Echo"]


async def test_an_unknown_pool_is_named_with_the_nearest(client: Client) -> None:
    pool = client.pool("developer_poo")
    asked = [
        pool.info(),
        pool.types(),
        pool.stats(),
        pool.workers(),
        pool.agents(),
        pool.scale(1),
        pool.spawn("Echo"),
        pool.run("Echo", 1),
        pool.submit("Echo", 1),
        anext(pool.events()),
    ]
    for each in asked:
        with pytest.raises(UnknownPool, match='Did you mean "developer_pool"'):
            await each


async def test_without_any_pool_the_master_is_mentioned(redis_url: str) -> None:
    async with connect(redis_url) as client:
        with pytest.raises(UnknownPool, match="agentpool-master"):
            await client.pool("p").stats()
        assert await client.stats() == []
        assert [event async for event in client.events()] == []


async def test_a_pool_that_vanishes_is_passed_over(client: Client, tiny: TinyPool) -> None:
    await tiny.store.connection.redis.sadd(tiny.store.keys.pools(), "gone")
    assert [info.pool_name for info in await client.pools()] == [POOL]
    assert [stats.pool_name for stats in await client.stats()] == [POOL]


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "-x", "x/y", "x" * 65, "pool:x", None, 5])
async def test_names_that_cannot_be(client: Client, name: str) -> None:
    with pytest.raises(InvalidInput):
        client.pool(name)
    with pytest.raises(InvalidInput):
        client.pool(POOL).agent(name)
    with pytest.raises(InvalidInput):
        await client.pool(POOL).spawn("Echo", tenant=name)
    if name is not None:
        with pytest.raises(InvalidInput):
            await client.pool(POOL).spawn("Echo", id=name)
        with pytest.raises(InvalidInput):
            await client.pool(POOL).spawn("Echo", project=name)


async def test_ids_of_agents(client: Client) -> None:
    pool = client.pool(POOL)
    assert pool.agent("x").id == pool.agent(f"{POOL}/x").id == client.agent(f"{POOL}/x").id == f"{POOL}/x"
    assert repr(pool.agent("x")) == f"AgentHandle('{POOL}/x')"
    assert repr(pool) == f"Pool('{POOL}')"
    with pytest.raises(InvalidInput, match="another pool"):
        pool.agent("other/x")
    with pytest.raises(InvalidInput, match="<pool>/<name>"):
        client.agent("x")
    with pytest.raises(InvalidInput, match="no task"):
        pool.task("other/x")
    with pytest.raises(UnknownAgent):
        await pool.agent("nobody").info()
    with pytest.raises(UnknownAgent):
        await pool.agent("nobody").terminate()
    with pytest.raises(UnknownAgent):
        await pool.agent("nobody").run(1)


# -- telling ----------------------------------------------------------------------------------------------------


async def test_drain(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker("w1", works=False)
    await tiny.add_worker("w2", works=False)
    await client.pool(POOL).drain("w1")
    await client.drain("w2")
    assert {worker.status for worker in await client.pool(POOL).workers()} == {"draining"}
    with pytest.raises(UnknownWorker):
        await client.drain("nobody")


async def test_a_worker_of_another_pool_is_not_drained(client: Client, tiny: TinyPool) -> None:
    async with tiny_pool(tiny.store.connection.url, "other") as other:
        await other.add_worker("w2", works=False)
        with pytest.raises(UnknownWorker, match="not of pool"):
            await client.pool(POOL).drain("w2")
        assert (await client.pool("other").workers())[0].status == "ready"


async def test_scale(client: Client, tiny: TinyPool) -> None:
    await client.pool(POOL).scale(2)
    assert (await client.pool(POOL).info()).floor == 2
    for wrong in (-1, 4, True, "2", 1.5):
        with pytest.raises(InvalidInput):
            await client.pool(POOL).scale(wrong)  # type: ignore[arg-type]
    assert (await client.pool(POOL).stats()).desired_workers == 2


async def test_terminate_may_be_repeated(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    agent = await client.pool(POOL).spawn("Echo", id="a", timeout=5)
    await agent.terminate()
    await agent.terminate()
    await wait_until(lambda: _agents(client, 0))


async def _agents(client: Client, count: int) -> bool:
    return len(await client.pool(POOL).agents()) == count
