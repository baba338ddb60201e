"""Tasks: run, handed in, waited for, and their outcomes as results or errors."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentpool.client.kinds import Kind, milliseconds
from agentpool.client.requests import Request
from agentpool.errors import (
    AgentPoolError,
    AgentTerminated,
    InvalidInput,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    WorkerLost,
)
from agentpool.protocol.records import Outcome, TaskError
from agentpool.protocol.states import TaskStatus

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["TaskHandle", "result_of", "run_task", "submit_tasks"]

_ERRORS: dict[TaskStatus, Callable[[str, Outcome, TaskError], AgentPoolError]] = {
    TaskStatus.FAILED: lambda task, _, error: TaskFailed(task, error.type, error.message, error.traceback),
    TaskStatus.INVALID: lambda _, __, error: InvalidInput(error.message, error.path or "$"),
    TaskStatus.CANCELLED: lambda task, _, error: TaskCancelled(f"Task {task} was cancelled: {error.message}"),
    TaskStatus.TIMED_OUT: lambda task, _, error: TaskTimedOut(f"Task {task} timed out: {error.message}"),
    TaskStatus.LOST: lambda task, outcome, error: WorkerLost(task, outcome.process_id, error.message),
    TaskStatus.TERMINATED: lambda task, _, error: AgentTerminated(f"Task {task}: its agent has ended: {error.message}"),
}


class TaskHandle:
    """A task that was accepted."""

    def __init__(self, client: "Client", task_id: str, kind: Kind) -> None:
        self.id = task_id
        self._client, self._kind = client, kind

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the result; may be called again. The task goes on when the wait is cancelled or times out.

        Raises what became of the task, or `TaskTimedOut` when it is not finished within `timeout` seconds.
        """
        milliseconds("timeout", timeout)
        try:
            outcome = await self._client.backend.outcome(self.id, timeout)
        except TimeoutError:
            raise TaskTimedOut(f"Task {self.id} did not finish within {timeout} s. It goes on.") from None
        return result_of(self.id, self._kind, outcome)

    async def cancel(self) -> bool:
        """Cancel the task: at once while it waits, through its worker while it runs. False: it was finished."""
        return await self._client.backend.cancel(self.id)

    async def info(self) -> dict[str, Any]:
        """Return the task's state as plain data: status, and its worker or its outcome."""
        return await self._client.backend.task_info(self.id)


async def submit_tasks(client: "Client", requests: Sequence[Request], kind: Kind) -> list[TaskHandle]:
    """Return when all tasks are accepted; cancelling this withdraws them."""
    await client.backend.submit(requests)
    return [TaskHandle(client, request.task_id, kind) for request in requests]


async def run_task(client: "Client", request: Request, kind: Kind) -> Any:
    """Submit and wait for the result; cancelling this, or a timeout, cancels the task."""
    return result_of(request.task_id, kind, await client.backend.run(request))


def result_of(task_id: str, kind: Kind, outcome: Outcome) -> Any:
    """Return a result, or raise the error that the outcome means."""
    if outcome.status is TaskStatus.SUCCEEDED:
        return kind.decode(task_id, outcome.result)
    raise _ERRORS[outcome.status](task_id, outcome, outcome.error or TaskError())
