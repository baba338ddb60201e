"""Calls into agents: how they end, and what is said of their errors."""

import asyncio
import contextlib
import gc
import time
import weakref
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import structlog

from agentpool.pool.calls import Call, Ended, Meter, Owner, Tell, brief


def test_an_error_is_named_without_the_data_that_it_is_about() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"\xff" + b"secret" * 10_000).decode()
    assert brief(caught.value).startswith("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0")
    assert len(brief(caught.value)) < 100
    assert len(brief(ValueError("x" * 10_000))) == 2048


async def test_a_call_that_ends_in_the_step_of_its_deadline_has_ended_well() -> None:
    async def code() -> int:
        time.sleep(0.02)
        return 1

    call = call_of(code, timeout=0.01)
    ended = await call.ended()
    assert (ended.well, ended.value) == (True, 1)


def call_of(code: Any, timeout: float | None = None, tells: tuple[Tell, ...] = ()) -> Call:
    return Call(Owner("a1", 1.0, Meter(), lambda call, ended: None), "code()", timeout, code, (), tells)


async def test_what_an_agent_raises_is_freed_without_the_garbage_collector() -> None:
    class Big:
        pass

    big = Big()
    left = weakref.ref(big)

    async def code(kept: Big) -> None:
        raise ValueError

    call = call_of(partial(code, big))
    del big
    gc.disable()
    try:
        ended = await call.ended()
        assert isinstance(ended.error, ValueError)
        assert "in code" in ended.traceback()
        del ended, call
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()


async def test_a_call_that_raises_before_it_has_a_coroutine_has_failed() -> None:
    def code() -> Any:
        raise StopIteration(1)

    ended = await call_of(code).ended()
    assert (ended.kind, type(ended.error)) == ("raised", StopIteration)


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_call_is_stopped_at_any_step(steps: int) -> None:
    stopped: list[str] = []

    async def code() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(asyncio.current_task().get_name())  # type: ignore[union-attr]

    call = call_of(code)
    for _ in range(steps):
        await asyncio.sleep(0)
    call.stop("enough")
    ended = await call.ended()
    assert (ended.kind, ended.why) == ("raised", "enough")
    assert stopped == ["code()"] * (steps > 0)
    assert not call.still_runs


async def test_what_a_call_took_itself_does_not_count_what_the_loop_did_before_and_after() -> None:
    async def code() -> int:
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        return 1

    call = call_of(code)
    time.sleep(0.05)
    await call.ended()
    assert call.own_s is not None
    assert call.own_s < 0.04
    assert call.over_at - call.began > 0.09
    failed = call_of(partial(int, "x"))  # type: ignore[arg-type]
    await failed.ended()
    assert failed.own_s is None


word: ContextVar[str] = ContextVar("word", default="outside")


async def test_who_is_told_of_a_run_sees_nothing_that_it_set_nor_does_the_next_run() -> None:
    seen: list[str] = []
    over = asyncio.Event()

    async def code() -> None:
        seen.append(word.get())
        seen.append(structlog.contextvars.get_contextvars()["agent_id"])
        word.set("inside")

    def told(call: Call, ended: Ended) -> None:
        seen.append(word.get())
        seen.append(structlog.contextvars.get_contextvars().get("agent_id", "none"))
        if len(seen) < 8:
            call_of(code, tells=(told,))
        else:
            over.set()

    call_of(code, tells=(told,))
    await over.wait()
    assert seen == ["outside", "a1", "outside", "none"] * 2


async def test_the_loop_turns_between_runs_of_which_each_begins_the_next() -> None:
    counts: list[int] = []

    async def code() -> None:
        counts.append(0)

    def told(call: Call, ended: Ended) -> None:
        if len(counts) < 1000:
            call_of(code, tells=(told,))

    call_of(code, tells=(told,))
    turns = 0
    while len(counts) < 1000:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 999


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_a_run_that_is_cancelled_in_the_step_of_its_return_was_cancelled(is_stopped: bool) -> None:
    told: list[Ended] = []

    async def code() -> int:
        if is_stopped:
            call.stop("enough")
        else:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
        return 1

    call = call_of(code, tells=(lambda _, ended: told.append(ended),))
    ended = await call.ended()
    assert told == [ended]
    assert (ended.kind, type(ended.error), ended.why) == (
        "raised",
        asyncio.CancelledError,
        "enough" if is_stopped else "",
    )


async def test_a_run_that_caught_its_cancellation_has_returned() -> None:
    told: list[Ended] = []

    async def code() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 1

    call = call_of(code, tells=(lambda _, ended: told.append(ended),))
    await asyncio.sleep(0)
    call.stop("enough")
    ended = await call.ended()
    assert told == [ended]
    assert (ended.kind, ended.value, ended.why) == ("returned", 1, "enough")


async def test_a_run_that_is_stopped_as_its_end_is_told_has_returned() -> None:
    async def code() -> int:
        return 1

    def told(call: Call, ended: Ended) -> None:
        call.stop("too late")
        assert not call.still_runs

    call = call_of(code, timeout=60.0, tells=(told,))
    ended = await call.ended()
    assert (ended.well, call.why) == (True, "")


async def test_timeouts_and_groups_work_within_a_run() -> None:
    async def child() -> int:
        await asyncio.sleep(0)
        return 2

    async def code() -> int:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(child())
        return task.result()

    told: list[Any] = []
    call = call_of(code, tells=(lambda _, ended: told.append(ended.value),))
    assert (await call.ended()).value == 2
    assert told == [2]
