"""Calls into the code of agents: each in a task of its own, with a deadline, its CPU time measured.

An agent may raise anything (`SystemExit` too, which would end the event loop), may run for ever, and may swallow its
cancellation. So a call always comes to an `Ended`, at the latest `grace` seconds after it was told to stop; a task
that still runs then is given up, and its agent must be replaced.
"""

import asyncio
import threading
import traceback
from asyncio import Task, get_running_loop
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from time import thread_time
from types import TracebackType
from typing import Any, Literal

import msgspec
import structlog

from agentpool.clock import monotonic
from agentpool.protocol.tasks import TaskError

__all__ = ["Call", "Code", "Ended", "Meter", "OnCpu", "Owner", "Tell", "brief", "describe"]

Code = Callable[..., Coroutine[Any, Any, Any]]
"""Makes the coroutine of a call."""
Tell = Callable[["Call", "Ended"], object]
"""Is told of the end of a call."""

TRACEBACK_CHARACTERS_MAX = 4096
MESSAGE_CHARACTERS_MAX = 2048
OWN_FOLDER = str(Path(__file__).parent)
"""Frames of code in this folder at the top of an agent's traceback are ours, and tell its author nothing."""


class Ended(msgspec.Struct, frozen=True):
    """How a call ended. `why` is what it was told to stop for, '' when nobody did; `timed_out` says that its own
    time was over, `well` that it came to its own end without an error.
    """

    kind: Literal["returned", "raised", "abandoned"]
    value: Any = None
    error: BaseException | None = None
    why: str = ""
    timed_out: bool = False
    well: bool = False

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


class Owner:
    """Whose calls they are: what all calls into one agent have in common.

    `under_way` are those that have not ended; `gave_up` is told first of one that ignored its cancellation for `grace`
    seconds. `id` stands on every log line that the agent's code writes.
    """

    __slots__ = ("deadlines", "gave_up", "grace", "id", "meter", "under_way")

    def __init__(self, id: str, grace: float, meter: Meter, gave_up: Tell) -> None:
        self.id, self.grace, self.meter, self.gave_up = id, grace, meter, gave_up
        self.under_way: set[Call] = set()
        self.deadlines: _Deadlines | None = None
        """Those of the loop that the last call with a long one was in."""


class OnCpu:
    """The number of the task whose code has the CPU, in memory that others may read when this process has ended.

    One for the process; `view` is a private byte array until a worker gives it a shared one. 0: no task.
    """

    view: memoryview = memoryview(bytearray(4)).cast("I")


class _Deadlines(dict["Call", float]):
    """Long deadlines of calls, looked at together: a timer of its own for each would cost more than a short task."""

    __slots__ = ("is_timed", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop, self.is_timed = loop, False

    def look_later(self) -> None:
        """Look at them after a step; nobody looks while there are none."""
        self.is_timed = True
        self.loop.call_later(DEADLINE_STEP, self._look)

    def _look(self) -> None:
        now = monotonic()
        for call in [call for call, deadline in self.items() if deadline <= now]:
            del self[call]
            call.expire()
        self.is_timed = False
        if self:
            self.look_later()


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


def _variable_of(field: str) -> ContextVar[Any]:
    """Return where structlog keeps a field that stands on every line of a call; setting it binds the field."""
    tokens = Context().run(structlog.contextvars.bind_contextvars, **{field: None})
    return tokens[field].var


_agent_id, _task_id = _variable_of("agent_id"), _variable_of("task_id")


class Call(Coroutine[Any, Any, Any]):
    """One call into an agent; `label` names it. `then` and `ended` tell of its end.

    `code(*arguments)` is called in the first step of the call's task, whose context variables are a copy of the
    caller's: whatever it raises is the agent's failure too. `tells` are told of the end, in turn, before all others; if
    there are any, in the very step in which the agent's code returns.

    What the task steps through is the call itself, with nothing between it and the agent: `send` and `throw` take one
    step of the agent's code each. `began` and `over_at` are monotonic times, and `own_s` is what it took between its
    first step and its return, without what the loop did before; None when it did not return.
    """

    __slots__ = (
        "_arguments", "_code", "_deadlines", "_ended", "_entered", "_loop", "_mark", "_others", "_outside", "_over",
        "_owner", "_raised", "_running", "_task", "_task_id", "_tells", "_timed_out", "_timeout", "_timer", "began",
        "label", "over_at", "own_s", "why",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        label: str,
        timeout: float | None,
        code: Code,
        arguments: Sequence[Any] = (),
        tells: tuple[Tell, ...] = (),
        task_id: str | None = None,
        mark: int = 0,
    ) -> None:
        self._owner, self.label, self._timeout = owner, label, timeout
        self._code, self._arguments, self._tells = code, arguments, tells
        self._task_id, self._mark = task_id, mark
        self._others: tuple[Callable[[Ended], object], ...] = ()
        self._running: Coroutine[Any, Any, Any] | None = None
        """The agent's coroutine, from the first step on."""
        self._raised: BaseException | None = None
        self.why, self._timed_out = "", False
        self._over: asyncio.Future[Ended] | None = None
        self._ended: Ended | None = None
        self.began = self.over_at = self._entered = monotonic()
        self.own_s: float | None = None
        loop = self._loop = get_running_loop()
        self._outside = copy_context()
        """The context variables of the caller, for those who are told of the end."""
        # Not by way of the loop, which may have a factory of eager tasks: the agent would run before this is complete.
        self._task: asyncio.Task[Any] | None = Task(self, loop=loop, name=label)
        owner.under_way.add(self)
        self._timer: asyncio.TimerHandle | None = None
        self._deadlines: _Deadlines | None = None
        if timeout is None:
            pass
        elif timeout < LONG_TIMEOUT:
            self._timer = loop.call_later(timeout, self.expire)
        else:
            deadlines = owner.deadlines
            if deadlines is None or deadlines.loop is not loop:
                deadlines = owner.deadlines = _deadlines_of(loop)
            self._deadlines = deadlines
            deadlines[self] = self.began + timeout
            if not deadlines.is_timed:
                deadlines.look_later()

    # -- what its task does -------------------------------------------------------------------------------------

    def send(self, value: Any, error: BaseException | None = None) -> Any:
        """Take the next step of the agent's code: add its CPU time to the agent's meter, and mark whose step it is.

        What the agent returns becomes the result of the task; whatever it raises, `SystemExit` too, is kept here.
        """
        view, running = OnCpu.view, self._running
        has_returned, result = False, None
        began = thread_time()
        view[0] = self._mark
        try:
            if error is not None:
                if running is None:
                    raise error
                return running.throw(error)
            if running is None:
                self._entered = monotonic()
                _agent_id.set(self._owner.id)
                _task_id.set(self._task_id)
                running = self._running = self._code(*self._arguments)
            return running.send(value)
        except StopIteration as stop:
            if running is None:
                self._raised = stop
            else:
                has_returned, result = True, stop.value
        except BaseException as raised:  # noqa: BLE001 (see above)
            # Without this frame, which holds the call: it would hold the error in turn.
            self._raised = raised.with_traceback(raised.__traceback__ and raised.__traceback__.tb_next)
        finally:
            view[0] = 0
            self._owner.meter.cpu_s += thread_time() - began
        if has_returned:
            self._returned(result)
        else:
            self._end_with_task()
        del self  # an error's frames lead back to this one (Python 3.13), which must not lead to who keeps the error
        raise StopIteration(result)

    def throw(self, error: Any, *rest: Any) -> Any:
        """Take the next step, which begins with an error."""
        return self.send(None, error)

    def close(self) -> None:
        """End the agent's code where it waits."""
        if self._running is not None:
            self._running.close()

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
        self._timer = self._loop.call_later(self._owner.grace, self._abandon)

    @property
    def still_runs(self) -> bool:
        """Tell whether the agent's code has not ended, whatever was said of the call."""
        return self._task is not None and not self._task.done()

    def then(self, tell: Callable[[Ended], object]) -> None:
        """Have `tell` called, in the loop, when the call ended; those told first are called first."""
        if self._ended is None:
            self._others += (tell,)
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

    def _returned(self, value: Any) -> None:
        """The agent's code returned. A run's end is told in this very step, a turn of the loop before its task is done,
        as if outside of the task; unless that was cancelled in the meantime: what it comes to is open then.
        """
        now = monotonic()
        self.own_s = now - self._entered
        if not self._tells or self.why or self._task is None or self._task.cancelling():
            self._end_with_task()
        else:
            self._task = None
            self._outside.run(self._tell, Ended("returned", value, None, "", False, True), now)

    def _end_with_task(self) -> None:
        if self._task is not None:
            self._task.add_done_callback(self._finished, context=self._outside)

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._task = None
        self._disarm()
        error = asyncio.CancelledError() if task.cancelled() else self._raised
        self._raised = None
        ended = Ended("returned", task.result(), well=True) if error is None else Ended("raised", error=error)
        self._end(ended, monotonic())

    def _abandon(self) -> None:
        self._end(Ended("abandoned"), monotonic())

    def _end(self, ended: Ended, now: float) -> None:
        if self._ended is not None:
            return
        if self.why:
            ended = msgspec.structs.replace(ended, why=self.why, timed_out=self._timed_out, well=False)
        self._tell(ended, now)

    def _tell(self, ended: Ended, now: float) -> None:
        self._ended, self.over_at = ended, now
        if self._deadlines is not None:
            self._deadlines.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        self._owner.under_way.discard(self)
        if ended.kind == "abandoned":
            self._owner.gave_up(self, ended)
        for tell in self._tells:
            tell(self, ended)
        self._tells = ()
        if self._others:
            for told in self._others:
                told(ended)
            self._others = ()
        if self._over is not None:
            self._over.set_result(ended)

    def _disarm(self) -> None:
        deadlines, self._deadlines = self._deadlines, None
        if deadlines is not None:
            deadlines.pop(self, None)
        timer, self._timer = self._timer, None
        if timer is not None:
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
