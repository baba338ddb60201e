"""Calls into the code of agents: each in a task of its own, with a deadline, its CPU time measured.

An agent may raise anything (`SystemExit` too, which would end the event loop), may run for ever, and may swallow its
cancellation. So a call always comes to an `Ended`, at the latest `grace` seconds after it was told to stop; a task
that still runs then is given up, and its agent must be replaced.
"""

import asyncio
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from time import thread_time
from types import TracebackType
from typing import Any, Literal

import msgspec

from agentpool.clock import monotonic
from agentpool.protocol.tasks import TaskError

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


class _Deadlines:
    """Long deadlines of calls, looked at together: a timer of its own for each would cost more than a short task."""

    __slots__ = ("_calls", "_timer", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self._timer = loop, False
        self._calls: dict[Call, float] = {}

    def add(self, call: "Call", deadline: float) -> None:
        self._calls[call] = deadline
        if not self._timer:
            self._timer = True
            self.loop.call_later(DEADLINE_STEP, self._look)

    def drop(self, call: "Call") -> None:
        self._calls.pop(call, None)

    def _look(self) -> None:
        now = monotonic()
        for call in [call for call, deadline in self._calls.items() if deadline <= now]:
            del self._calls[call]
            call.expire()
        self._timer = bool(self._calls)
        if self._timer:
            self.loop.call_later(DEADLINE_STEP, self._look)


DEADLINE_STEP = 0.25
LONG_TIMEOUT = 10.0
"""Deadlines as far away as this one, in s, may be `DEADLINE_STEP` late."""


class _Here(threading.local):
    """Those of the loop that ran last in this thread."""

    deadlines: _Deadlines | None = None


_here = _Here()


def _deadlines_of(loop: asyncio.AbstractEventLoop) -> _Deadlines:
    found = _here.deadlines
    if found is None or found.loop is not loop:
        found = _here.deadlines = _Deadlines(loop)
    return found


class Call(Coroutine[Any, Any, Any]):
    """One call into an agent; `label` names it. `then` and `ended` tell of its end.

    `begin` makes the agent's coroutine in the first step of the call's task, whose context variables are a copy of the
    caller's: whatever it raises is the agent's failure too. `tell(call, ended)` is told of the end before all others.

    What the task steps through is the call itself, with nothing between it and the agent: `send` and `throw` take one
    step of the agent's code each. `began` and `over_at` are monotonic times, and `own_s` is what it took between its
    first step and its return, without what the loop did before and after; None when it did not return.
    """

    __slots__ = (
        "_begin", "_code", "_ended", "_entered", "_grace", "_loop", "_mark", "_meter", "_over", "_raised", "_task",
        "_tell", "_tells", "_timed_out", "_timeout", "_timer", "began", "label", "over_at", "own_s", "why",
    )  # fmt: skip

    def __init__(
        self,
        begin: Begin,
        label: str,
        timeout: float | None,
        grace: float,
        meter: Meter,
        mark: int = 0,
        tell: "Callable[[Call, Ended], object] | None" = None,
    ) -> None:
        self._begin, self._meter, self._mark, self._tell = begin, meter, mark, tell
        self._code: Coroutine[Any, Any, Any] | None = None
        self._raised: BaseException | None = None
        self.label, self.why = label, ""
        self._grace, self._timed_out, self._timeout = grace, False, timeout
        self._over: asyncio.Future[Ended] | None = None
        self._ended: Ended | None = None
        self._tells: tuple[Callable[[Ended], object], ...] = ()
        self.began = self.over_at = self._entered = monotonic()
        self.own_s: float | None = None
        loop = self._loop = asyncio.get_running_loop()
        # Not by way of the loop, which may have a factory of eager tasks: the agent would run before this is complete.
        self._task: asyncio.Task[Any] | None = asyncio.Task(self, loop=loop, name=label)
        self._task.add_done_callback(self._finished)
        self._timer: asyncio.TimerHandle | _Deadlines | None = None
        if timeout is None:
            pass
        elif timeout < LONG_TIMEOUT:
            self._timer = loop.call_later(timeout, self.expire)
        else:
            self._timer = _deadlines_of(loop)
            self._timer.add(self, self.began + timeout)

    # -- what its task does -------------------------------------------------------------------------------------

    def send(self, value: Any, error: BaseException | None = None) -> Any:
        """Take the next step of the agent's code: add its CPU time to the agent's meter, and mark whose step it is.

        What the agent returns becomes the result of the task; whatever it raises, `SystemExit` too, is kept here.
        """
        view = OnCpu.view
        began = thread_time()
        view[0] = self._mark
        try:
            if error is not None:
                if self._code is None:
                    raise error
                return self._code.throw(error)
            if self._code is None:
                self._entered = monotonic()
                self._code = self._begin()
            return self._code.send(value)
        except StopIteration as stop:
            if self._code is not None:
                self.own_s = monotonic() - self._entered
                raise
            self._raised = stop
        except BaseException as raised:  # noqa: BLE001 (see above)
            # Without this frame, which holds the call: it would hold the error in turn.
            self._raised = raised.with_traceback(raised.__traceback__ and raised.__traceback__.tb_next)
        finally:
            view[0] = 0
            self._meter.cpu_s += thread_time() - began
        del self  # an error's frames lead back to this one (Python 3.13), which must not lead to who keeps the error
        raise StopIteration

    def throw(self, error: Any, *rest: Any) -> Any:
        """Take the next step, which begins with an error."""
        return self.send(None, error)

    def close(self) -> None:
        """End the agent's code where it waits."""
        if self._code is not None:
            self._code.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.ended().__await__()

    # -- its end ------------------------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """Cancel the call; the first reason counts."""
        if self.why or self._task is None or self._task.done():
            return
        self.why = why
        self._task.cancel()
        self._disarm()
        self._timer = self._loop.call_later(self._grace, self._abandon)

    @property
    def still_runs(self) -> bool:
        """Tell whether the agent's code has not ended, whatever was said of the call."""
        return self._task is not None and not self._task.done()

    def then(self, tell: Callable[[Ended], object]) -> None:
        """Have `tell` called, in the loop, when the call ended; those told first are called first."""
        if self._ended is None:
            self._tells += (tell,)
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

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._task = None
        if self._timer is not None:
            self._disarm()
        error = asyncio.CancelledError() if task.cancelled() else self._raised
        self._raised = None
        self._end(Ended("returned", task.result()) if error is None else Ended("raised", error=error))

    def _abandon(self) -> None:
        self._end(Ended("abandoned"))

    def _end(self, ended: Ended) -> None:
        if self._ended is not None:
            return
        if self.why:
            ended = msgspec.structs.replace(ended, why=self.why, timed_out=self._timed_out)
        self._ended, self.over_at = ended, monotonic()
        if self._tell is not None:
            self._tell(self, ended)
        for tell in self._tells:
            tell(ended)
        self._tells = ()
        if self._over is not None:
            self._over.set_result(ended)

    def _disarm(self) -> None:
        timer = self._timer
        if timer is not None:
            self._timer = None
            if isinstance(timer, _Deadlines):
                timer.drop(self)
            else:
                timer.cancel()


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
