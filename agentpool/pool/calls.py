"""Calls into the code of agents: each in a task of its own, with a deadline, its CPU time measured.

An agent may raise anything (`SystemExit` too, which would end the event loop), may run for ever, and may swallow its
cancellation. So a call always comes to an `Ended`, at the latest `grace` seconds after it was told to stop; a task
that still runs then is given up, and its agent must be replaced.
"""

import asyncio
import contextvars
import traceback
import weakref
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from time import thread_time
from types import TracebackType
from typing import Any, Literal

import msgspec

from agentpool.protocol.records import TaskError

__all__ = ["Begin", "Call", "Ended", "Meter", "OnCpu", "brief", "describe"]

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


class OnCpu:
    """The number of the task whose code has the CPU, in memory that others may read when this process has ended.

    One for the process; `view` is a private byte array until a worker gives it a shared one. 0: no task.
    """

    view: memoryview = memoryview(bytearray(4)).cast("I")


class _Metered:
    """Await a coroutine, adding the CPU time of each of its steps to a meter and marking whose steps they are."""

    __slots__ = ("_code", "_mark", "_meter")

    def __init__(self, code: Coroutine[Any, Any, Any], meter: Meter, mark: int) -> None:
        self._code, self._meter, self._mark = code, meter, mark

    def __await__(self) -> Generator[Any, Any, Any]:
        code, meter, mark, view = self._code, self._meter, self._mark, OnCpu.view
        value: Any = None
        error: BaseException | None = None
        while True:
            began = thread_time()
            view[0] = mark
            try:
                waits_for = code.send(value) if error is None else code.throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                view[0] = 0
                meter.cpu_s += thread_time() - began
            try:
                value, error = (yield waits_for), None
            except GeneratorExit:
                code.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 (whatever it is, it is meant for the agent)
                value, error = None, thrown


class _Deadlines:
    """Long deadlines of calls, looked at together: a timer of its own for each would cost more than a short task."""

    __slots__ = ("_calls", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._timer = loop, False
        self._calls: dict[Call, float] = {}

    def add(self, call: "Call", timeout: float) -> None:
        self._calls[call] = self._loop.time() + timeout
        if not self._timer:
            self._timer = True
            self._loop.call_later(DEADLINE_STEP, self._look)

    def drop(self, call: "Call") -> None:
        self._calls.pop(call, None)

    def _look(self) -> None:
        now = self._loop.time()
        for call in [call for call, deadline in self._calls.items() if deadline <= now]:
            del self._calls[call]
            call.expire()
        self._timer = bool(self._calls)
        if self._timer:
            self._loop.call_later(DEADLINE_STEP, self._look)


DEADLINE_STEP = 0.25
LONG_TIMEOUT = 10.0
"""Deadlines as far away as this one, in s, may be `DEADLINE_STEP` late."""
_deadlines: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Deadlines]" = weakref.WeakKeyDictionary()


def _deadlines_of(loop: asyncio.AbstractEventLoop) -> _Deadlines:
    found = _deadlines.get(loop)
    if found is None:
        found = _deadlines[loop] = _Deadlines(loop)
    return found


class Call:
    """One call into an agent; `label` names it. `then` and `ended` tell of its end.

    `begin` makes the coroutine once the task runs: whatever it raises is the agent's failure too. `context` holds
    the context variables of the call, those of the caller when it is not given.
    """

    __slots__ = (
        "_ended",
        "_grace",
        "_loop",
        "_over",
        "_task",
        "_tells",
        "_timed_out",
        "_timeout",
        "_timer",
        "label",
        "why",
    )

    def __init__(
        self,
        begin: Begin,
        *,
        label: str,
        timeout: float | None,
        grace: float,
        meter: Meter,
        context: contextvars.Context | None = None,
        mark: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.label, self.why = label, ""
        self._grace, self._timed_out, self._timeout = grace, False, timeout
        self._over: asyncio.Future[Ended] | None = None
        self._ended: Ended | None = None
        self._tells: list[Callable[[Ended], object]] = []
        self._task = self._loop.create_task(_guard(begin, meter, mark), name=label, context=context)
        self._task.add_done_callback(self._finished)
        self._timer: asyncio.TimerHandle | _Deadlines | None = None
        if timeout is None:
            pass
        elif timeout < LONG_TIMEOUT:
            self._timer = self._loop.call_later(timeout, self.expire)
        else:
            self._timer = _deadlines_of(self._loop)
            self._timer.add(self, timeout)

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
        """Have `tell` called, in the loop, when the call ended; those told first are called first."""
        if self._ended is None:
            self._tells.append(tell)
        else:
            self._loop.call_soon(tell, self._ended)

    async def ended(self) -> Ended:
        """Wait for the end; cancelling the waiter leaves the call alone."""
        if self._ended is not None:
            return self._ended
        return await asyncio.shield(self._future())

    async def result(self) -> Ended:
        """Wait for the end; cancelling the waiter stops the call, and is passed on when the call has ended."""
        if self._ended is not None:
            return self._ended
        over = self._future()
        try:
            return await asyncio.shield(over)
        except asyncio.CancelledError:
            self.stop("cancelled")
            while not over.done():
                try:
                    await asyncio.shield(over)
                except asyncio.CancelledError:  # again: the first one is passed on below
                    continue
            raise

    def _future(self) -> "asyncio.Future[Ended]":
        if self._over is None:
            self._over = self._loop.create_future()
        return self._over

    def expire(self) -> None:
        """The call's own time is over."""
        self._timed_out = not self.why
        self.stop(f"took longer than {self._timeout:g} s")

    def _finished(self, task: "asyncio.Task[Ended]") -> None:
        self._disarm()
        self._end(Ended("raised", error=asyncio.CancelledError()) if task.cancelled() else task.result())

    def _abandon(self) -> None:
        self._end(Ended("abandoned"))

    def _end(self, ended: Ended) -> None:
        if self._ended is not None:
            return
        if self.why:
            ended = msgspec.structs.replace(ended, why=self.why, timed_out=self._timed_out)
        self._ended = ended
        for tell in self._tells:
            tell(ended)
        self._tells.clear()
        if self._over is not None:
            self._over.set_result(ended)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if isinstance(timer, _Deadlines):
            timer.drop(self)
        elif timer is not None:
            timer.cancel()


async def _guard(begin: Begin, meter: Meter, mark: int) -> Ended:
    try:
        return Ended("returned", await _Metered(begin(), meter, mark))
    except BaseException as error:  # noqa: BLE001 (whatever an agent raises, SystemExit too, is its failure alone)
        return Ended("raised", error=error)


def describe(error: BaseException) -> TaskError:
    """Return an error as bounded text; of a long traceback the end is kept, where the cause is."""
    text = "".join(traceback.format_exception(type(error), error, _without_own_frames(error.__traceback__)))
    return TaskError(
        type=type(error).__name__,
        message=_message(error),
        traceback=_plain(text if len(text) <= TRACEBACK_CHARACTERS_MAX else "…" + text[-TRACEBACK_CHARACTERS_MAX:]),
    )


def brief(error: BaseException) -> str:
    """Name an error in bounded text. Not its `repr`, which may show all the data that it is about."""
    return f"{type(error).__name__}: {_message(error)}"[:MESSAGE_CHARACTERS_MAX]


def _message(error: BaseException | None) -> str:
    try:
        return _plain(str(error)[:MESSAGE_CHARACTERS_MAX])
    except Exception as problem:  # noqa: BLE001 (an agent's own classes may raise anything here)
        return f"(its message cannot be read: {type(problem).__name__})"


def _plain(text: str) -> str:
    """Return text that can be written as UTF-8: the name of a file, say, may hold half a character."""
    return text.encode(errors="backslashreplace").decode()


def _without_own_frames(frames: TracebackType | None) -> TracebackType | None:
    rest = frames
    while rest and rest.tb_next and rest.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
        rest = rest.tb_next
    return rest
