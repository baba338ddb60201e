"""What carries requests out: the one seam between what a client is asked for and where agents live.

Everything above it is the same wherever that is: names and numbers are checked, input is JSON, and results are typed
there. A backend gets whole requests and answers with records or with errors of `agentpool.errors`.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from agentpool.client.requests import Request, Spawn
from agentpool.protocol.events import Event, TaskEvent
from agentpool.protocol.limits import TenantUsage
from agentpool.protocol.records import AgentRecord, PoolInfo, PoolStats, TypeInfo, WorkerRecord
from agentpool.protocol.tasks import DeadLetter, Outcome

__all__ = ["Backend", "Waiter"]


class Waiter(Protocol):
    """Who is told an outcome, or why there is none, as a future is."""

    def done(self) -> bool: ...

    def set_result(self, outcome: Any, /) -> None: ...

    def set_exception(self, error: Any, /) -> None: ...

    def exception(self) -> BaseException | None: ...


class Backend(Protocol):
    """One installation. Made in any thread; belongs to one event loop from `open()` to `close()`. Times are seconds.

    A verb that changes something and is cancelled leaves nothing behind, at whatever moment that is: what was asked
    for is taken back, in the background if need be.
    """

    async def open(self) -> None:
        """Make ready, or raise why not; it is closed after both."""

    async def close(self) -> None:
        """Let go; may be called twice. Those who still wait get `PoolClosed`, or the outcome where tasks end with the
        client; what they asked for is taken back, but a task that was submitted goes on where it can.
        """

    # -- agents: ids are `<pool>/<name>` ------------------------------------------------------------------------

    async def spawn(self, request: Spawn, timeout: float | None) -> None:
        """Return when the agent's `start()` has finished; after `timeout` it is withdrawn, and `NoCapacity` says why.

        Raises also `UnknownPool`, `UnknownAgentType`, `DuplicateAgent`, `QueueFull`, and `request.ended_early()`.
        """

    async def agent(self, agent_id: str) -> AgentRecord:
        """Return the record of a live agent; raises `UnknownAgent`."""
        ...

    async def agents(self, pool: str) -> list[AgentRecord]:
        """Return the live agents of a pool that is there, in the order of their names."""
        ...

    async def terminate(self, agent_id: str, reason: str) -> None:
        """End an agent; returns when it counts no more, while its `stop()` may go on. Its mailbox fails.

        Quiet when it has ended already; raises `UnknownAgent` once that is forgotten.
        """

    # -- tasks: ids are `<pool>/<id>` ---------------------------------------------------------------------------

    async def submit(self, requests: Sequence[Request]) -> list[str]:
        """Return the ids of the tasks when they are accepted: they share everything but their inputs and keys. A key
        that is known already gives the id of its task.

        When one cannot be, those before it are taken back. Raises `UnknownPool`, `UnknownAgentType`, `UnknownAgent`,
        `AgentTerminated`, `InputTooLarge`, `QueueFull`, `AgentLimitError`, `Unplaceable`, `IdempotencyConflict`.
        """
        ...

    async def run(self, request: Request) -> Outcome:
        """Submit a task and return its outcome; a task that was not finished in time or whose caller is gone is
        cancelled.

        Raises what `submit` does, and `request.timed_out()` when `request.patience` is over, or `TimeoutError` where
        the task is that of an earlier request with the same key, and goes on.
        """
        ...

    def tell(self, task_id: str, waiter: Waiter) -> None:
        """Have a waiter told the outcome, or `UnknownTask`: maybe at once, and not when it is done already."""

    async def outcome(self, task_id: str, timeout: float | None) -> Outcome:
        """Wait for the outcome of a task, several callers at once; it goes on when the wait ends.

        Raises `TimeoutError`, and `UnknownTask` when nothing is kept of it.
        """
        ...

    async def cancel(self, task_id: str) -> bool:
        """Cancel a task, and tell whether it was still unfinished; raises `UnknownTask`."""
        ...

    async def task_info(self, task_id: str) -> dict[str, Any]:
        """Return a task as plain data: `task_id`, `status`, `attempts`, and its `process_id` or the fields of its
        outcome.

        Raises `UnknownTask`.
        """
        ...

    def follow_task(self, task_id: str) -> AsyncGenerator[TaskEvent, None]:
        """Yield what the task is and what happens to it, up to `task.finished`; raises `UnknownTask`."""
        ...

    # -- dead letters and tenants -------------------------------------------------------------------------------

    def dead_letters(
        self, pool: str, *, older_than_ms: int, agent_type: str, tenant: str
    ) -> AsyncGenerator[DeadLetter, None]:
        """Yield the dead letters that fit, oldest first; what is 0 or '' fits all."""
        ...

    async def dead_letter(self, task_id: str) -> DeadLetter:
        """Return a dead letter; raises `UnknownTask`."""
        ...

    async def replay(self, task_id: str) -> str:
        """Submit a dead task anew; returns the id of the new one. Raises `UnknownTask`, `UnknownAgent`."""
        ...

    async def purge(self, task_ids: Sequence[str]) -> int:
        """Throw dead letters of one pool away; returns how many there were."""
        ...

    async def tenants(self, pool: str) -> list[TenantUsage]:
        """Return what each tenant of a pool uses, in the order of their names."""
        ...

    async def tenant(self, pool: str, tenant: str) -> TenantUsage:
        """Return what one tenant uses; one that uses nothing is no error."""
        ...

    async def limit_tenant(self, pool: str, tenant: str, limits: Mapping[str, float | None]) -> None:
        """Set limits of a tenant live; None takes one back. Raises `UnknownPool`."""

    # -- pools: what is asked of one that is not there may be empty, but `pool_info` always says so ----------------

    async def pool_names(self) -> list[str]:
        """Return the names of the pools, sorted."""
        ...

    async def pool_info(self, pool: str) -> PoolInfo:
        """Return a pool's settings as applied; raises `UnknownPool`."""
        ...

    async def types(self, pool: str) -> list[TypeInfo]:
        """Return what the pool's agent types declare."""
        ...

    async def stats(self, pool: str) -> PoolStats:
        """Return the pool in numbers; raises `UnknownPool`."""
        ...

    async def workers(self, pool: str) -> list[WorkerRecord]:
        """Return the workers that are not gone, oldest first."""
        ...

    async def pool_of(self, worker_id: str) -> str:
        """Return the pool of a worker; raises `UnknownWorker`."""
        ...

    async def drain(self, pool: str, worker_id: str, reason: str) -> None:
        """Have a worker finish what it runs, hand its agents over and leave; returns when it was told."""

    async def scale(self, pool: str, workers: int) -> None:
        """Set the number of workers to keep; raises `UnknownPool`, or `InvalidInput` outside the pool's bounds."""

    async def events(self, pool: str, limit: int) -> list[Event]:
        """Return the latest events of a pool, oldest first."""
        ...

    def follow(self, pools: Sequence[str]) -> AsyncGenerator[Event, None]:
        """Yield events of the pools from now on, as they come, until this is closed."""
        ...
