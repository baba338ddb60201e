"""Calls into agents: how they end, and what is said of their errors."""

import asyncio
import gc
import time
import weakref
from functools import partial
from typing import Any

import pytest

from agentpool.pool.calls import Call, Meter, brief


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

    call = Call(code, label="code()", timeout=0.01, grace=1, meter=Meter())
    ended = await call.ended()
    assert (ended.well, ended.value) == (True, 1)


def call_of(begin: Any) -> Call:
    return Call(begin, label="code()", timeout=None, grace=1, meter=Meter())


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
