"""Calls into the code of agents: each in a task of its own, with a deadline, and unable to hurt the worker.

An agent may raise anything (`SystemExit` too, which would end the event loop), may run for ever, and may swallow its
cancellation. So a call always comes to an `Ended`, at the latest `grace` seconds after it was told to stop; a task
that still runs then is abandoned, and its agent must be replaced.
"""

import asyncio
import contextvars
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import msgspec
import structlog

from agentpool.protocol.records import TaskError

__all__ = ["Call", "Ended", "brief", "describe", "summary"]

log = structlog.get_logger("worker")

TRACEBACK_CHARACTERS_MAX = 4096
MESSAGE_CHARACTERS_MAX = 2048
OWN_FRAMES = 1
"""Frames of this module at the top of an agent's traceback."""


class Ended(msgspec.Struct, frozen=True):
    """How a call ended. `why` is what it was told to stop for, '' when nobody did."""

    kind: Literal["returned", "raised", "abandoned"]
    value: Any = None
    error: BaseException | None = None
    why: str = ""

    @property
    def well(self) -> bool:
        """Tell whether the call came to its own end without an error."""
        return self.kind == "returned" and not self.why


class Call:
    """One call into an agent; `label` names it in logs and in reports of a blocked loop."""

    def __init__(
        self, code: Coroutine[Any, Any, Any], *, label: str, timeout: float, grace: float, **bound: Any
    ) -> None:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        context.run(structlog.contextvars.bind_contextvars, **bound)
        self.label, self.why = label, ""
        self._code, self._grace = code, grace
        self._over: asyncio.Future[Ended] = loop.create_future()
        self._task = asyncio.create_task(_guard(code), name=label, context=context)
        self._task.add_done_callback(self._finished)
        self._timer = loop.call_later(timeout, self.stop, "timed_out") if timeout else None

    def stop(self, why: str) -> None:
        """Cancel the call; the first reason counts."""
        if self.why or self._over.done():
            return
        self.why = why
        self._task.cancel()
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(self._grace, self._abandon)

    def then(self, tell: Callable[["Call", Ended], None]) -> None:
        """Have `tell` called when the call ended."""
        self._over.add_done_callback(lambda over: tell(self, over.result()))

    async def ended(self) -> Ended:
        """Wait for the end; cancelling the waiter leaves the call alone."""
        return await asyncio.shield(self._over)

    def _finished(self, task: "asyncio.Task[Ended]") -> None:
        self._disarm()
        if task.cancelled():
            # Before its first step: the task never entered its coroutine, so the agent's was never begun either.
            self._code.close()
        ended = Ended("raised", error=asyncio.CancelledError()) if task.cancelled() else task.result()
        if not self._over.done():
            self._over.set_result(msgspec.structs.replace(ended, why=self.why))

    def _abandon(self) -> None:
        if not self._over.done():
            log.error("agent.ignores_cancellation", call=self.label, after=self.why, waited_s=self._grace)
            self._over.set_result(Ended("abandoned", why=self.why))

    def _disarm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


async def _guard(code: Coroutine[Any, Any, Any]) -> Ended:
    try:
        return Ended("returned", await code)
    except BaseException as error:  # noqa: BLE001 (whatever an agent raises, SystemExit too, is its failure alone)
        return Ended("raised", error=error)


def describe(error: BaseException) -> TaskError:
    """Return an error as bounded text; of a long traceback the end is kept, where the cause is."""
    frames = error.__traceback__
    for _ in range(OWN_FRAMES):
        frames = frames.tb_next if frames and frames.tb_next else frames
    text = "".join(traceback.format_exception(type(error), error, frames))
    return TaskError(
        type=type(error).__name__,
        message=str(error)[:MESSAGE_CHARACTERS_MAX],
        traceback=text if len(text) <= TRACEBACK_CHARACTERS_MAX else "…" + text[-TRACEBACK_CHARACTERS_MAX:],
    )


def brief(error: BaseException) -> str:
    """Name an error in bounded text. Not its `repr`, which may show all the data that it is about."""
    return f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS_MAX]


def summary(what: str, ended: Ended, timeout: float) -> str:
    """Say in bounded text why a call into an agent is a failure."""
    if ended.why == "timed_out":
        return f"{what} took longer than {timeout:g} s"
    if ended.why:
        return f"{what} was stopped: {ended.why}"
    if ended.error is None:
        return f"{what} did not end"
    error = describe(ended.error)
    return f"{what} raised {error.type}: {error.message}\n{error.traceback}".rstrip()
