"""Tasks: submitted, waited for, cancelled, and their outcomes as results or errors."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentpool.client.kinds import Kind, milliseconds
from agentpool.errors import (
    AgentPoolError,
    AgentTerminated,
    InvalidInput,
    RedisUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    WorkerLost,
)
from agentpool.protocol.codec import check_name, new_id
from agentpool.protocol.records import Outcome, TaskEnvelope, TaskError, TaskHeader
from agentpool.protocol.states import TaskStatus

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["Request", "TaskHandle", "run_task", "submit_task"]

PRIORITY_MAX = 9
PRIORITY = 5
AGE_STEP_US = 10_000_000
"""A task waits at most this much longer than one that is one priority more urgent: so none waits for ever."""

RUN_MARGIN_S = 1.0
"""A run with a timeout waits this much longer for the worker's own word that it timed out."""

_ERRORS: dict[TaskStatus, Callable[[str, Outcome, TaskError], AgentPoolError]] = {
    TaskStatus.FAILED: lambda task, _, error: TaskFailed(task, error.type, error.message, error.traceback),
    TaskStatus.INVALID: lambda _, __, error: InvalidInput(error.message, error.path or "$"),
    TaskStatus.CANCELLED: lambda task, _, error: TaskCancelled(f"Task {task} was cancelled: {error.message}"),
    TaskStatus.TIMED_OUT: lambda task, _, error: TaskTimedOut(f"Task {task} timed out: {error.message}"),
    TaskStatus.LOST: lambda task, outcome, error: WorkerLost(task, outcome.process_id, error.message),
    TaskStatus.TERMINATED: lambda task, _, error: AgentTerminated(f"Task {task}: its agent has ended: {error.message}"),
}


class Request:
    """A task to be: for one pinned agent (by name) or for any agent of a type. Checked when it is made."""

    def __init__(
        self,
        pool: str,
        kind: Kind,
        input: Any,
        *,
        agent_name: str = "",
        tenant: str = "default",
        priority: int = PRIORITY,
        timeout: float | None = None,
    ) -> None:
        self.task_id = f"{pool}/{new_id()}"
        self.kind, self.agent_name = kind, agent_name
        self.tenant = check_name("tenant", tenant)
        self.later_us = _check_priority(priority) * AGE_STEP_US
        self.timeout = timeout
        self.envelope = TaskEnvelope(input=kind.encode(input), timeout_ms=milliseconds("timeout", timeout))

    def header(self, reply_to: str) -> TaskHeader:
        """Return what scripts read of the task; an agent that is named needs no type."""
        agent_type = "" if self.agent_name else self.kind.name
        return TaskHeader(reply_to, self.agent_name, agent_type, self.tenant)


def _check_priority(priority: int) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= PRIORITY_MAX:
        raise InvalidInput(f"priority is {priority!r}: it must be 0 (most urgent) to {PRIORITY_MAX}.", "$.priority")
    return priority


class TaskHandle:
    """A task that Redis has accepted."""

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
        replies = self._client.replies
        with replies.task(self.id) as waiter:
            replies.accept(waiter, look=True)
            try:
                outcome = await replies.wait(waiter, timeout)
            except TimeoutError:
                raise TaskTimedOut(f"Task {self.id} did not finish within {timeout} s. It goes on.") from None
        return _result(self.id, self._kind, outcome)

    async def cancel(self) -> bool:
        """Cancel the task: at once while it waits, through its worker while it runs. False: it was finished."""
        return await self._client.store.tasks.cancel(self.id) != "finished"

    async def info(self) -> dict[str, Any]:
        """Return the task's state as plain data: status, and its worker or its outcome."""
        return await self._client.store.tasks.info(self.id)


async def submit_task(client: "Client", request: Request) -> TaskHandle:
    """Return when Redis has the task; cancelling this withdraws it."""
    try:
        await _submit(client, request)
    except asyncio.CancelledError:
        await client.cleanup.run(lambda: client.store.tasks.cancel(request.task_id))
        raise
    return TaskHandle(client, request.task_id, request.kind)


async def run_task(client: "Client", request: Request) -> Any:
    """Submit and wait for the result; cancelling this, or a timeout, cancels the task."""
    task_id, replies = request.task_id, client.replies
    with replies.task(task_id) as waiter:
        try:
            await _submit(client, request)
            replies.accept(waiter)
            limit = None if request.timeout is None else request.timeout + RUN_MARGIN_S
            outcome: Any = await replies.wait(waiter, limit)
        except TimeoutError:
            outcome = await _stop(client, request)
        except asyncio.CancelledError:
            await client.cleanup.run(lambda: client.store.tasks.cancel(task_id))
            raise
        except RedisUnavailable:
            client.cleanup.start(lambda: client.store.tasks.cancel(task_id))
            raise
    return _result(task_id, request.kind, outcome)


async def _submit(client: "Client", request: Request) -> None:
    """Send a task, and see it through even when the caller is cancelled: only then can it be cancelled in Redis."""
    header = request.header(client.replies.reply_to)
    sending = asyncio.ensure_future(
        client.store.tasks.submit(
            request.task_id, header, request.envelope, later_us=request.later_us, timeout=request.timeout
        )
    )
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait([sending], timeout=client.store.connection.timeout)
        raise


async def _stop(client: "Client", request: Request) -> Outcome:
    """Cancel a task whose time is over; returns its outcome if it finished in this very moment."""
    answer = await client.store.tasks.cancel(request.task_id)
    if answer == "finished" and (outcome := await client.store.tasks.read(request.task_id)):
        return outcome
    where = "while it ran" if answer == "asked" else "before any agent took it"
    raise TaskTimedOut(
        f"Task {request.task_id} did not finish within {request.timeout} s and was cancelled {where}."
    ) from None


def _result(task_id: str, kind: Kind, outcome: Any) -> Any:
    """Return a result, or raise the error that the outcome means."""
    assert isinstance(outcome, Outcome)
    if outcome.status is TaskStatus.SUCCEEDED:
        return kind.decode(task_id, outcome.result)
    raise _ERRORS[outcome.status](task_id, outcome, outcome.error or TaskError())
