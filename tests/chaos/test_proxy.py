"""The doors before a server let pass, hold up, lose, delay and cut what they are told to."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from chaos.proxy import Doors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError
from support.door import OPEN, Door, Harm

from agentpool.redis_server import EmbeddedServer


@pytest.fixture
async def door(redis_url: str, redis_server: EmbeddedServer) -> AsyncIterator[tuple[Door, Any]]:
    door = Door(str(redis_server.socket_path))
    client = redis.asyncio.Redis(port=await door.open(), retry=Retry(NoBackoff(), 0), decode_responses=True)
    yield door, client
    await client.aclose()
    await door.close()


async def test_an_open_door_lets_all_pass(door: tuple[Door, Any]) -> None:
    await door[1].set("a", "x" * 100_000)
    assert await door[1].get("a") == "x" * 100_000


async def test_a_reply_is_dropped_after_its_command_was_carried_out(door: tuple[Door, Any]) -> None:
    await door[1].ping()
    door[0].set(Harm(drop=1.0))
    with pytest.raises(ConnectionError):
        await door[1].incr("a")
    door[0].set(OPEN)
    assert await door[1].get("a") == "1"
    assert door[0].dropped == 1


@pytest.mark.parametrize(("harm", "carried_out"), [(Harm(hold_requests=True), None), (Harm(hold_replies=True), "1")])
async def test_what_is_held_up_arrives_when_the_door_opens(
    door: tuple[Door, Any], redis_url: str, harm: Harm, carried_out: str | None
) -> None:
    await door[1].ping()
    door[0].set(harm)
    asked = asyncio.ensure_future(door[1].incr("a"))
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as direct:
        await asyncio.sleep(0.1)
        assert await direct.get("a") == carried_out
    assert not asked.done()
    door[0].set(OPEN)
    assert await asked == 1


async def test_what_is_held_up_is_lost_when_the_door_opens_with_a_cut(door: tuple[Door, Any]) -> None:
    await door[1].ping()
    door[0].set(Harm(hold_requests=True, hold_replies=True))
    asked = asyncio.ensure_future(door[1].incr("a"))
    await asyncio.sleep(0.1)
    door[0].set(OPEN, cut=True)
    with pytest.raises(ConnectionError):
        await asked
    assert await door[1].get("a") is None


async def test_a_door_that_refuses_cuts_and_takes_nobody(door: tuple[Door, Any]) -> None:
    await door[1].ping()
    door[0].set(Harm(refuse=True))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await door[1].ping()
    door[0].set(OPEN)
    assert await door[1].ping()


async def test_doors_in_a_process_of_their_own(redis_url: str, redis_server: EmbeddedServer) -> None:
    doors = Doors(str(redis_server.socket_path), ["left", "right"], seed=1)
    await doors.open()
    try:
        async with (
            redis.asyncio.Redis.from_url(doors.url("left"), retry=Retry(NoBackoff(), 0)) as left,
            redis.asyncio.Redis.from_url(doors.url("right")) as right,
        ):
            await left.ping()
            await doors.set("left", Harm(drop=1.0))
            with pytest.raises(ConnectionError):
                await left.ping()
            assert await right.ping()
            assert await doors.dropped() == 1
    finally:
        await doors.close()
