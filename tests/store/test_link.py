"""One connection for many calls: each caller gets its own answer, whatever became of the others."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError
from support.seeds import new_store
from support.server import start_server
from support.wait import wait_until

from agentpool.errors import RedisUnavailable
from agentpool.redis_server import EmbeddedServer
from agentpool.store import Store
from agentpool.store.link import Link


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that a test may harm."""
    server = start_server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
async def own_store(own_server: EmbeddedServer) -> AsyncIterator[Store]:
    async with new_store(own_server.url, command_timeout=0.6) as store:
        yield store


async def numbers(store: Store) -> int:
    """Return how many connections the server has now."""
    return (await store.connection.ask("CLIENT", "LIST")).count("id=")


async def test_answers_come_to_those_who_asked_though_others_left(own_server: EmbeddedServer, own_store: Store) -> None:
    connection = own_store.connection
    await connection.ask("PING")
    assert own_server.pid
    os.kill(own_server.pid, signal.SIGSTOP)
    asked = [asyncio.create_task(connection.ask("ECHO", str(i))) for i in range(100)]
    await asyncio.sleep(0.05)
    for ask in asked[::2]:
        ask.cancel()
    await asyncio.sleep(0)
    os.kill(own_server.pid, signal.SIGCONT)
    assert await asyncio.gather(*asked[1::2]) == [str(i) for i in range(1, 100, 2)]
    assert await numbers(own_store) == 1, "nobody needed another connection"


async def test_an_error_is_told_to_its_caller_only(own_store: Store) -> None:
    connection = own_store.connection
    await connection.ask("SET", "text", "x")
    good, bad, same = await asyncio.gather(
        connection.ask("ECHO", "good"), connection.ask("INCR", "text"), connection.ask("PING"), return_exceptions=True
    )
    assert (good, same) == ("good", "PONG")
    assert isinstance(bad, RedisUnavailable)
    with pytest.raises(RedisUnavailable, match="not an integer"):
        await connection.ask_all([("INCR", "text"), ("PING",), ("INCR", "text")])
    assert await connection.ask_all([("ECHO", "a"), ("ECHO", "ü"), ("GET", "none")]) == ["a", "ü", None]


async def test_a_connection_that_says_nothing_is_not_used_on(own_server: EmbeddedServer, own_store: Store) -> None:
    connection = own_store.connection
    await connection.ask("PING")
    first = connection._link
    assert first
    assert own_server.pid
    os.kill(own_server.pid, signal.SIGSTOP)
    with pytest.raises(RedisUnavailable):
        await connection.ask("PING", timeout=0.05)
    assert first.is_open, "a caller's short patience says nothing of the connection"
    with pytest.raises(RedisUnavailable):
        await connection.ask("PING")
    assert not first.is_open
    os.kill(own_server.pid, signal.SIGCONT)
    assert await connection.ask("PING") == "PONG"


async def test_those_who_wait_are_told_when_it_is_lost(own_store: Store) -> None:
    connection = own_store.connection
    await connection.ask("PING")
    link = connection._link
    assert link
    answers = [link.send(("BLPOP", "none", 0)), link.send(("PING",))]
    await own_store.connection.redis.client_kill_filter(_type="normal")
    for answer in answers:
        with pytest.raises(ConnectionError):
            await answer
    await wait_until(lambda: not link.is_open)
    assert await connection.ask("PING") == "PONG", "there is another"


async def test_callers_that_come_together_open_one(own_store: Store) -> None:
    assert await asyncio.gather(*(own_store.connection.ask("ECHO", i) for i in range(50))) == [
        str(i) for i in range(50)
    ]
    assert await numbers(own_store) == 1
    await own_store.close()
    assert await own_store.connection.ask("PING") == "PONG", "one that was closed opens again"


@pytest.mark.parametrize("last_word", [b"", b"-ERR max number of clients reached\r\n"])
async def test_one_that_ended_before_it_was_taken_over_is_lost(tmp_path: Path, last_word: bytes) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(last_word)
        writer.close()

    path = tmp_path / "refusing.sock"
    async with await asyncio.start_unix_server(refuse, path), new_store(f"unix://{path}") as store:
        opened = await store.connection._opened()
        await wait_until(lambda: opened._reader._eof)
        link = Link(opened)
        assert not link.is_open
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(link.send(("PING",)), 1)
