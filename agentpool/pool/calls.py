"""Calls into the code of agents: each in a task of its own, with a deadline, its CPU time measured.

An agent may raise anything (`SystemExit` too, which would end the event loop), may run for ever, and may swallow its
cancellation. So a call always comes to an `Ended`, at the latest `grace` seconds after it was told to stop; a task
that still runs then is given up, and its agent must be replaced.
"""

import asyncio
import contextvars
import traceback
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from time import thread_time
from types import TracebackType
from typing import Any, Literal

import msgspec

from agentpool.protocol.records import TaskError

__all__ = ["Begin", "Call", "Ended", "Meter", "brief", "describe"]

Begin = Callable[[], Coroutine[Any, Any, Any]]
"""Makes the coroutine of a call."""

TRACEBACK_CHARACTERS_MAX = 4096
MESSAGE_CHARACTERS_MAX = 2048
OWN_FOLDER = str(Path(__file__).parent)
"""Frames of code in this folder at the top of an agent's traceback are ours, and tell its author nothing."""


class Ended(msgspec.Struct, frozen=True):
    """How a call ended. `why` is what it was told to stop for, '' when nobody did; `timed_out` says that its own
    time was over.
    """

    kind: Literal["returned", "raised", "abandoned"]
    value: Any = None
    error: BaseException | None = None
    why: str = ""
    timed_out: bool = False

    @property
    def well(self) -> bool:
        """Tell whether the call came to its own end without an error."""
        return self.kind == "returned" and not self.why

    def describe(self, what: str) -> str:
        """Say in bounded text why this is a failure."""
        if self.kind == "abandoned":
            return f"{what} ignored its cancellation ({self.why})"
        if self.timed_out:
            return f"{what} {self.why}"
        if self.why:
            return f"{what} was stopped: {self.why}"
        return f"{what} raised {brief(self.error)}" if self.error else f"{what} did not end"

    def traceback(self) -> str:
        """Return where the agent raised, or '' when it did not."""
        return describe(self.error).traceback if self.error and not self.why else ""


class Meter:
    """CPU time in s that an agent used in the thread of the loop."""

    __slots__ = ("cpu_s",)

    def __init__(self) -> None:
        self.cpu_s = 0.0


class _Metered:
    """Await a coroutine, adding the CPU time of each of its steps to a meter."""

    __slots__ = ("_code", "_meter")

    def __init__(self, code: Coroutine[Any, Any, Any], meter: Meter) -> None:
        self._code, self._meter = code, meter

    def __await__(self) -> Generator[Any, Any, Any]:
        code, meter = self._code, self._meter
        value: Any = None
        error: BaseException | None = None
        while True:
            began = thread_time()
            try:
                waits_for = code.send(value) if error is None else code.throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                meter.cpu_s += thread_time() - began
            try:
                value, error = (yield waits_for), None
            except GeneratorExit:
                code.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 (whatever it is, it is meant for the agent)
                value, error = None, thrown


class Call:
    """One call into an agent; `label` names it. `then` and `ended` tell of its end.

    `begin` makes the coroutine once the task runs: whatever it raises is the agent's failure too. `context` holds
    the context variables of the call, those of the caller when it is not given.
    """

    __slots__ = ("_grace", "_loop", "_over", "_task", "_timed_out", "_timer", "label", "why")

    def __init__(
        self,
        begin: Begin,
        *,
        label: str,
        timeout: float | None,
        grace: float,
        meter: Meter,
        context: contextvars.Context | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.label, self.why = label, ""
        self._grace, self._timed_out = grace, False
        self._over: asyncio.Future[Ended] = self._loop.create_future()
        self._task = self._loop.create_task(_guard(begin, meter), name=label, context=context)
        self._task.add_done_callback(self._finished)
        self._timer = None if timeout is None else self._loop.call_later(timeout, self._expire, timeout)

    def stop(self, why: str) -> None:
        """Cancel the call; the first reason counts."""
        if self.why or self._task.done():
            return
        self.why = why
        self._task.cancel()
        self._disarm()
        self._timer = self._loop.call_later(self._grace, self._abandon)

    @property
    def still_runs(self) -> bool:
        """Tell whether the agent's code has not ended, whatever was said of the call."""
        return not self._task.done()

    def then(self, tell: Callable[[Ended], object]) -> None:
        """Have `tell` called, in the loop, when the call ended."""
        self._over.add_done_callback(lambda over: tell(over.result()))

    async def ended(self) -> Ended:
        """Wait for the end; cancelling the waiter leaves the call alone."""
        return await asyncio.shield(self._over)

    async def result(self) -> Ended:
        """Wait for the end; cancelling the waiter stops the call, and is passed on when the call has ended."""
        try:
            return await asyncio.shield(self._over)
        except asyncio.CancelledError:
            self.stop("cancelled")
            while not self._over.done():
                try:
                    await asyncio.shield(self._over)
                except asyncio.CancelledError:  # again: the first one is passed on below
                    continue
            raise

    def _expire(self, timeout: float) -> None:
        self._timed_out = not self.why
        self.stop(f"took longer than {timeout:g} s")

    def _finished(self, task: "asyncio.Task[Ended]") -> None:
        self._disarm()
        self._end(Ended("raised", error=asyncio.CancelledError()) if task.cancelled() else task.result())

    def _abandon(self) -> None:
        self._end(Ended("abandoned"))

    def _end(self, ended: Ended) -> None:
        if self._over.done():
            return
        if self.why:
            ended = msgspec.structs.replace(ended, why=self.why, timed_out=self._timed_out)
        self._over.set_result(ended)

    def _disarm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


async def _guard(begin: Begin, meter: Meter) -> Ended:
    try:
        return Ended("returned", await _Metered(begin(), meter))
    except BaseException as error:  # noqa: BLE001 (whatever an agent raises, SystemExit too, is its failure alone)
        return Ended("raised", error=error)


def describe(error: BaseException) -> TaskError:
    """Return an error as bounded text; of a long traceback the end is kept, where the cause is."""
    text = "".join(traceback.format_exception(type(error), error, _without_own_frames(error.__traceback__)))
    return TaskError(
        type=type(error).__name__,
        message=str(error)[:MESSAGE_CHARACTERS_MAX],
        traceback=text if len(text) <= TRACEBACK_CHARACTERS_MAX else "…" + text[-TRACEBACK_CHARACTERS_MAX:],
    )


def brief(error: BaseException) -> str:
    """Name an error in bounded text. Not its `repr`, which may show all the data that it is about."""
    return f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS_MAX]


def _without_own_frames(frames: TracebackType | None) -> TracebackType | None:
    rest = frames
    while rest and rest.tb_next and rest.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
        rest = rest.tb_next
    return rest
