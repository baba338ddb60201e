"""One task: its input decoded, the agent's `run()` called, the outcome written down as data."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from agentpool.agent import AgentType, Context
from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, InvalidInput
from agentpool.hosting.place import Place
from agentpool.pool.calls import MESSAGE_CHARACTERS_MAX, Call, Ended, brief, describe
from agentpool.protocol.records import ClaimedTask, Outcome, TaskError
from agentpool.protocol.states import TaskStatus

if TYPE_CHECKING:
    from agentpool.hosting.pinned import Pinned

__all__ = ["Run", "failed", "stopped"]

STOPPED = {
    "terminated": (TaskStatus.TERMINATED, "AgentTerminated", "the agent was terminated"),
    "agent_failed": (TaskStatus.FAILED, "AgentFailed", "the agent failed while the task ran; see its last_error"),
}
"""What a run that was told to stop comes to; for all other reasons, given in words, it was cancelled."""


def failed(status: TaskStatus, error: TaskError) -> Outcome:
    """Return the outcome of a task that did not succeed."""
    return Outcome(status=status, error=error)


def stopped(why: str) -> Outcome:
    """Return the outcome of a task whose run was told to stop."""
    status, name, text = STOPPED.get(why, (TaskStatus.CANCELLED, "TaskCancelled", why))
    return failed(status, TaskError(type=name, message=text))


class Run:
    """A task that this host shall carry out, from its claim to its outcome; it can be stopped at any moment.

    `pinned` is the agent that it was begun on, if it names one.
    """

    def __init__(self, place: Place, task: ClaimedTask) -> None:
        self.task, self.why = task, ""
        self.pinned: Pinned | None = None
        self._place, self._settings = place, place.settings
        self._stop: Callable[[str], object] | None = None

    def stop(self, why: str) -> None:
        """Cancel the run; the first reason counts. `why` is a key of `STOPPED`, or a reason in words."""
        if not self.why:
            self.why = why
            if self._stop:
                self._stop(why)

    @contextlib.contextmanager
    def cancelling_this_task(self) -> Iterator[None]:
        """Within the block, stopping the run cancels the asyncio task that carries it out."""
        task = asyncio.current_task()
        assert task is not None
        self._stop = lambda _: task.cancel()
        try:
            yield
        except asyncio.CancelledError:
            if self.why:
                task.uncancel()
            raise
        finally:
            self._stop = None

    def decode(self, type: AgentType) -> Any:
        """Return the typed input; raises `InvalidInput`."""
        if self.task.envelope is None:
            raise InvalidInput("the task's record cannot be read: it was not written by agentpool's client")
        return type.decode(self.task.envelope.input)

    async def perform(
        self, begin: Callable[[Context, Any, float | None], Call], input: Any, *, agent_id: str, fence: int = 0
    ) -> Outcome:
        """Run the task on a started agent; never raises what the agent raises."""
        envelope, header = self.task.envelope, self.task.header
        assert envelope is not None
        if self.why:
            return stopped(self.why)
        context = self._place.context(
            agent_id, self.task.id, tenant=header.tenant, project=envelope.project, fence=fence
        )
        timeout = envelope.timeout_ms / 1000 or self._settings.task_timeout or None
        began = monotonic()
        call = begin(context, input, timeout)
        self._stop = call.stop
        ended = await call.ended()
        duration_ms = round(1000 * (monotonic() - began), 3)
        return msgspec.structs.replace(self._outcome(ended), tokens=context.token_count, duration_ms=duration_ms)

    def _outcome(self, ended: Ended) -> Outcome:
        if ended.timed_out:
            return failed(TaskStatus.TIMED_OUT, TaskError(type="TaskTimedOut", message=f"the task {ended.why}"))
        if ended.why:
            return stopped(ended.why)
        if ended.error is not None:
            return failed(TaskStatus.FAILED, describe(ended.error))
        try:
            result = msgspec.json.encode(ended.value)
        except Exception as error:  # noqa: BLE001 (an agent's own classes may raise anything here)
            text = f"run() returned a {type(ended.value).__name__}, which has no JSON form: {brief(error)}"
            return failed(TaskStatus.FAILED, TaskError(type="InvalidResult", message=text[:MESSAGE_CHARACTERS_MAX]))
        bound = self._settings.max_result_bytes
        if len(result) > bound:
            text = f"The result has {len(result)} bytes; the bound is {bound}. Return a reference to the data instead."
            return failed(TaskStatus.FAILED, TaskError(type="ResultTooLarge", message=text))
        return Outcome(status=TaskStatus.SUCCEEDED, result=msgspec.Raw(result))

    def stopped_early(self) -> Outcome | None:
        """Return the outcome if the run was told to stop before it began."""
        return stopped(self.why) if self.why else None

    @staticmethod
    def refused(error: AgentPoolError) -> Outcome:
        """Return the outcome of a task that never reached an agent."""
        if isinstance(error, InvalidInput):
            detail = TaskError(type=type(error).__name__, message=str(error), path=error.path)
            return failed(TaskStatus.INVALID, detail)
        return failed(TaskStatus.FAILED, TaskError(type=type(error).__name__, message=str(error)))
