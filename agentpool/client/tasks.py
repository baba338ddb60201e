"""Tasks: run, handed in, waited for, and their outcomes as results or errors."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentpool.agent import Context
from agentpool.client.kinds import Kind, kind_of, milliseconds
from agentpool.client.requests import Request, new_request
from agentpool.errors import (
    AgentPoolError,
    AgentTerminated,
    InvalidInput,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    WorkerLost,
)
from agentpool.protocol.events import TaskEvent
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import Outcome, TaskError

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["TaskHandle", "result_of", "run_nested", "run_task", "submit_tasks"]

_ERRORS: dict[TaskStatus, Callable[[str, Outcome, TaskError], AgentPoolError]] = {
    TaskStatus.FAILED: lambda task, _, error: TaskFailed(task, error.type, error.message, error.traceback),
    TaskStatus.INVALID: lambda _, __, error: InvalidInput(error.message, error.path or "$"),
    TaskStatus.CANCELLED: lambda task, _, error: TaskCancelled(f"Task {task} was cancelled: {error.message}"),
    TaskStatus.TIMED_OUT: lambda task, _, error: TaskTimedOut(f"Task {task} timed out: {error.message}"),
    TaskStatus.EXPIRED: lambda task, _, error: TaskTimedOut(f"Task {task} expired: {error.message}"),
    TaskStatus.DEAD: lambda task, _, error: TaskFailed(task, error.type, error.message, error.traceback),
    TaskStatus.LOST: lambda task, outcome, error: WorkerLost(task, outcome.process_id, error.message),
    TaskStatus.TERMINATED: lambda task, _, error: AgentTerminated(f"Task {task}: its agent has ended: {error.message}"),
}


class TaskHandle:
    """A task that was accepted. `state` and `attempts` are what was last heard of it, by any method here."""

    __slots__ = ("__weakref__", "_client", "_kind", "attempts", "id", "state")

    def __init__(self, client: "Client", task_id: str, kind: Kind) -> None:
        self.id = task_id
        self.state: TaskStatus = TaskStatus.QUEUED
        self.attempts = 0
        """Attempts that began, the present one included; deaths of workers do not count."""
        self._client, self._kind = client, kind

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the result; may be called again. The task goes on when the wait is cancelled or times out.

        Raises what became of the task, or `TaskTimedOut` when it is not finished within `timeout` seconds.
        """
        if timeout is not None:
            milliseconds("timeout", timeout)
        try:
            outcome = await self._client.backend.outcome(self.id, timeout)
        except TimeoutError:
            raise TaskTimedOut(f"Task {self.id} did not finish within {timeout} s. It goes on.") from None
        return self.read(outcome)

    def read(self, outcome: Outcome) -> Any:
        """Return the result that an outcome of this task holds, or raise the error that it means."""
        self.state, self.attempts = outcome.status, outcome.attempts
        return result_of(self.id, self._kind, outcome)

    async def cancel(self) -> bool:
        """Cancel the task: at once while it waits, through its worker while it runs. False: it was finished."""
        return await self._client.backend.cancel(self.id)

    async def info(self) -> dict[str, Any]:
        """Return the task's state as plain data: status, attempts, and its worker or its outcome."""
        info = await self._client.backend.task_info(self.id)
        self.state, self.attempts = TaskStatus(info["status"]), int(info["attempts"])
        return info

    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield what happens to the task, until it has its outcome: `task.queued` or what else it is at first,
        `task.started`, `task.progress` for each `ctx.emit`, `task.retried`, `task.given_back`, and last
        `task.finished`.
        """
        async with contextlib.aclosing(self._client.backend.follow_task(self.id)) as following:
            async for event in following:
                yield event
                if event.type == "task.finished":
                    await self.info()
                    return


async def submit_tasks(client: "Client", requests: Sequence[Request], kind: Kind) -> list[TaskHandle]:
    """Return when all tasks are accepted; cancelling this withdraws them."""
    ids = await client.backend.submit(requests)
    return [TaskHandle(client, task_id, kind) for task_id in ids]


async def run_task(client: "Client", request: Request, kind: Kind) -> Any:
    """Submit and wait for the result; cancelling this, or a timeout, cancels the task unless another asked for it with
    the same key.
    """
    try:
        return result_of(request.task_id, kind, await client.backend.run(request))
    except TimeoutError:
        raise TaskTimedOut(f"The task of this key did not finish within {request.timeout} s. It goes on.") from None


async def run_nested(
    run: Callable[[Request], Awaitable[Outcome]],
    context: Context,
    agent_type: Any,
    input: Any,
    *,
    timeout: float | None = None,
) -> Any:
    """Run a task for the tenant of a task that waits for it, or for that of an agent; what `ctx.run` does."""
    kind = kind_of(agent_type)
    within: dict[str, Any] = {"parent": context.task_id, "depth": context.depth + 1} if context.task_id else {}
    request = new_request(context.pool, kind, input, tenant=context.tenant, timeout=timeout, **within)
    return result_of(request.task_id, kind, await run(request))


def result_of(task_id: str, kind: Kind, outcome: Outcome) -> Any:
    """Return a result, or raise the error that the outcome means."""
    if outcome.status is TaskStatus.SUCCEEDED:
        return kind.decode(task_id, outcome.result)
    raise _ERRORS[outcome.status](task_id, outcome, outcome.error or TaskError())
