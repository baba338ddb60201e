"""A loop that runs a verb on an interval or a wake-up until it is stopped."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from support.wait import wait_until

from agentpool.errors import RedisUnavailable
from agentpool.periodic import ERROR_DELAY_MAX, Periodic

HOUR = 3600.0


class Verb:
    """Counts its turns and does what `act` says."""

    def __init__(self, act: Callable[[int], float | None] = lambda turn: None) -> None:
        self.turns = 0
        self._act = act

    async def __call__(self) -> float | None:
        self.turns += 1
        return self._act(self.turns)


@asynccontextmanager
async def running(verb: Verb, interval: float) -> AsyncIterator[Periodic]:
    loop = Periodic("test", verb, interval)
    loop.start()
    try:
        yield loop
    finally:
        await loop.stop()


async def test_first_turn_comes_at_once_and_the_next_after_the_interval() -> None:
    verb = Verb()
    begun = time.monotonic()
    async with running(verb, 0.03) as loop:
        await wait_until(lambda: verb.turns == 1, interval=0.001)
        assert time.monotonic() - begun < 0.03
        await wait_until(lambda: verb.turns == 3, interval=0.001)
        assert time.monotonic() - begun >= 0.055
        assert not loop.failing


async def test_wake_brings_the_next_turn_at_once() -> None:
    verb = Verb()
    async with running(verb, HOUR) as loop:
        await wait_until(lambda: verb.turns == 1, interval=0.001)
        for turn in range(2, 5):
            loop.wake()
            await wait_until(lambda turn=turn: verb.turns == turn, timeout=1, interval=0.001)


async def test_wakes_during_a_turn_are_kept_as_one() -> None:
    turns = []

    async def verb() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            for _ in range(5):
                loop.wake()
            await asyncio.sleep(0.01)

    loop = Periodic("test", verb, HOUR)
    loop.start()
    await wait_until(lambda: len(turns) == 2, timeout=1)
    await asyncio.sleep(0.03)
    assert len(turns) == 2
    await loop.stop()


async def test_verb_may_ask_for_an_earlier_turn_but_not_a_later_one() -> None:
    verb = Verb(lambda turn: 0.001 if turn < 5 else HOUR)
    async with running(verb, HOUR):
        await wait_until(lambda: verb.turns == 5, timeout=1)
    verb = Verb(lambda turn: HOUR)
    async with running(verb, 0.005):
        await wait_until(lambda: verb.turns >= 3, timeout=1)


async def test_errors_are_logged_and_the_loop_goes_on_later_each_time(caplog: pytest.LogCaptureFixture) -> None:
    def act(turn: int) -> None:
        if turn == 1:
            raise RedisUnavailable("away")
        if turn == 2:
            raise ValueError("boom")

    verb = Verb(act)
    with caplog.at_level("INFO"):
        async with running(verb, 0.005) as loop:
            await wait_until(lambda: verb.turns == 1, interval=0)
            assert loop.failing
            succeeded = loop.last_success
            await wait_until(lambda: verb.turns >= 3)
            await wait_until(lambda: not loop.failing)
            assert loop.last_success > succeeded
    assert [(line.message, line.levelname, line.loop, line.error) for line in caplog.records] == [
        ("redis.unavailable", "WARNING", "test", "away"),
        ("loop.failed", "ERROR", "test", "boom"),
    ]


async def test_delay_after_errors_doubles_up_to_a_bound() -> None:
    def act(turn: int) -> None:
        raise RedisUnavailable("away")

    loop = Periodic("test", Verb(act), 0.5)
    delays = [await loop._turn() for _ in range(5)]
    assert delays == [1.0, 2.0, 4.0, ERROR_DELAY_MAX, ERROR_DELAY_MAX]
    slow = Periodic("test", Verb(act), 60.0)
    assert await slow._turn() == 60.0, "never more often than without errors"


async def test_wake_also_ends_the_wait_after_an_error() -> None:
    def act(turn: int) -> None:
        if turn == 1:
            raise RedisUnavailable("away")

    verb = Verb(act)
    async with running(verb, HOUR) as loop:
        await wait_until(lambda: verb.turns == 1)
        loop.wake()
        await wait_until(lambda: verb.turns == 2, timeout=1)


async def test_stop_ends_a_turn_in_its_middle_and_may_be_repeated() -> None:
    ended = []

    async def verb() -> None:
        try:
            await asyncio.sleep(HOUR)
        finally:
            ended.append(True)

    loop = Periodic("test", verb, HOUR)
    await loop.stop()
    loop.start()
    await asyncio.sleep(0.01)
    await loop.stop()
    assert ended == [True]
    await loop.stop()


@pytest.mark.parametrize("delay", [0, 0.001])
async def test_stop_works_while_waking(delay: float) -> None:
    for _ in range(50):
        loop = Periodic("test", Verb(), 0.001)
        loop.start()
        await asyncio.sleep(delay)
        loop.wake()
        await asyncio.wait_for(loop.stop(), 1)


async def test_last_turn_shows_that_the_loop_turns() -> None:
    verb = Verb()
    async with running(verb, 0.002) as loop:
        before = loop.last_turn
        await wait_until(lambda: loop.last_turn > before)
