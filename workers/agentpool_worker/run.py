"""One task: its input decoded, the agent's `run()` called, the outcome written down as data."""

from collections.abc import Callable
from typing import Any

import msgspec

from agentpool.agent import AgentType
from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, InvalidInput
from agentpool.protocol.records import Outcome, TaskError
from agentpool.protocol.states import TaskStatus
from agentpool.store.tasks import ClaimedTask
from agentpool_worker.calls import Ended, describe
from agentpool_worker.instance import Instance
from agentpool_worker.place import WorkPlace

__all__ = ["Run", "failed"]

STOPPED = {
    "timed_out": (TaskStatus.TIMED_OUT, "TaskTimedOut", "the task took longer than {timeout:g} s"),
    "terminated": (TaskStatus.TERMINATED, "AgentTerminated", "the agent was terminated"),
    "agent_failed": (TaskStatus.FAILED, "AgentFailed", "the agent failed while the task ran; see its last_error"),
}
"""What a run that was told to stop comes to; for all other reasons, given in words, it was cancelled."""


def failed(status: TaskStatus, error: TaskError) -> Outcome:
    """Return the outcome of a task that did not succeed."""
    return Outcome(status=status, error=error)


def stopped(why: str, timeout: float = 0) -> Outcome:
    """Return the outcome of a task whose run was told to stop."""
    status, name, text = STOPPED.get(why, (TaskStatus.CANCELLED, "TaskCancelled", why))
    return failed(status, TaskError(type=name, message=text.format(timeout=timeout)))


class Run:
    """A task that this worker holds the lease of, from its claim to its outcome; it can be stopped at any moment."""

    def __init__(self, place: WorkPlace, task: ClaimedTask) -> None:
        self.task, self.why = task, ""
        self._place, self._settings = place, place.settings
        self._stop: Callable[[str], object] | None = None

    def stop(self, why: str) -> None:
        """Cancel the run; the first reason counts. `why` is a key of `STOPPED`, or a reason in words."""
        self.why = self.why or why
        if self._stop:
            self._stop(self.why)

    def attach(self, stop: Callable[[str], object]) -> None:
        """Say how what goes on now is stopped."""
        self._stop = stop
        if self.why:
            stop(self.why)

    def decode(self, type: AgentType) -> Any:
        """Return the typed input; raises `InvalidInput`."""
        if self.task.envelope is None:
            raise InvalidInput("the task's record cannot be read: it was not written by agentpool's client")
        return type.decode(self.task.envelope.input)

    async def perform(self, instance: Instance, input: Any) -> Outcome:
        """Run the task on a started agent; never raises what the agent raises."""
        envelope = self.task.envelope
        assert envelope is not None
        if self.why:
            return stopped(self.why)
        context = instance.context(self.task.header.tenant, envelope.project, self.task.id)
        timeout = envelope.timeout_ms / 1000 or self._settings.task_timeout
        began = monotonic()
        call = instance.run(context, input, timeout)
        self.attach(call.stop)
        ended = await call.ended()
        duration_ms = round(1000 * (monotonic() - began), 3)
        outcome = stopped(ended.why, timeout) if ended.why else self._finished(ended)
        return msgspec.structs.replace(outcome, tokens=context.token_count, duration_ms=duration_ms)

    def _finished(self, ended: Ended) -> Outcome:
        if ended.error is not None:
            return failed(TaskStatus.FAILED, describe(ended.error))
        try:
            result = msgspec.json.encode(ended.value)
        except Exception as error:  # noqa: BLE001 (an agent's own classes may raise anything here)
            text = f"run() returned a {type(ended.value).__name__}, which has no JSON form: {error}"
            return failed(TaskStatus.FAILED, TaskError(type="InvalidResult", message=text[:2048]))
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
