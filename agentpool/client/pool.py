"""A pool, as a client sees it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from agentpool.agent import Agent
from agentpool.client.acquiring import Acquiring
from agentpool.client.agents import AgentHandle
from agentpool.client.kinds import UNTYPED, check_count, kind_of, milliseconds
from agentpool.client.mapping import PARALLEL, map_tasks
from agentpool.client.requests import PRIORITY, Spawn, TaskOptions, new_request, new_requests
from agentpool.client.tasks import TaskHandle, run_task, submit_tasks
from agentpool.errors import InvalidInput, UnknownPool, UnknownWorker
from agentpool.protocol.codec import check_name, new_id
from agentpool.protocol.events import Event
from agentpool.protocol.keys import split_id
from agentpool.protocol.limits import TenantUsage, check_limits
from agentpool.protocol.records import AgentRecord, PoolInfo, PoolStats, TypeInfo, WorkerRecord
from agentpool.protocol.tasks import DeadLetter

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["Pool"]

T = TypeVar("T")

RELEASE_WAITS_S = 5.0
"""How long a release bears that nobody answers, before it goes on without its caller."""


class Pool:
    """One pool. Making this does no I/O, so it may name a pool that does not exist yet."""

    def __init__(self, client: "Client", name: str) -> None:
        self.name = check_name("pool", name)
        self._client = client

    def __repr__(self) -> str:
        return f"Pool({self.name!r})"

    # -- agents -------------------------------------------------------------------------------------------------

    async def spawn(
        self,
        agent_type: str | type[Agent],
        *,
        id: str | None = None,
        tenant: str = "default",
        project: str | None = None,
        max_idle_time: float | None = None,
        heartbeat_interval: float | None = None,
        timeout: float | None = 30,
    ) -> AgentHandle:
        """Have an agent started on a worker and return when it is ready; times are in seconds.

        `id` is a name of your choice; `max_idle_time` ends the agent when it was not used for so long;
        `heartbeat_interval` has it asked for its health. After `timeout` the request is withdrawn and `NoCapacity`
        says why. Raises also `AgentFailed` when its `start()` was given up, and `DuplicateAgent`.
        """
        milliseconds("timeout", timeout)
        kind = kind_of(agent_type)
        request = Spawn(
            agent_id=self._agent_id(id) if id is not None else f"{self.name}/{new_id()}",
            agent_type=kind.name,
            tenant=check_name("tenant", tenant),
            project="" if project is None else check_name("project", project),
            max_idle_ms=milliseconds("max_idle_time", max_idle_time),
            heartbeat_ms=milliseconds("heartbeat_interval", heartbeat_interval),
            operation=new_id(),
        )
        await self._known(self._client.backend.spawn(request, timeout))
        return AgentHandle(self._client, request.agent_id, kind)

    def acquire(
        self,
        agent_type: str | type[Agent],
        *,
        tenant: str = "default",
        project: str | None = None,
        timeout: float | None = 30,
        max_idle_time: float | None = 600,
    ) -> Acquiring:
        """Return a request for a new agent that is the caller's alone: await it, or enter it with `async with`.

        What that gives is an `AgentHandle`, until the end of the block or `release()`. `timeout` and errors are those
        of `spawn`. `max_idle_time` is in seconds: an agent that was not used for so long ends, which gives its slot
        back when its holder died. None: it waits for its release for ever.
        """
        return Acquiring(
            lambda: self.spawn(
                agent_type, tenant=tenant, project=project, timeout=timeout, max_idle_time=max_idle_time
            ),
            self.release,
        )

    def release(self, agent: AgentHandle) -> "asyncio.Future[None]":
        """End an agent that was acquired; what this returns may be awaited. Does nothing to one that has ended already.

        Cancelling the wait does not stop it. While the server is away it goes on in the background, quietly: the caller
        could do no more about it than `max_idle_time` does, which also ends what is released after the client was
        closed. Raises `InvalidInput` for an agent acquired elsewhere.
        """
        agent_id = self._agent_id(agent.id)
        if agent._client is not self._client:
            raise InvalidInput(f"Agent {agent_id} was acquired by another client: release it there.", "$.id")
        client, cleanup = self._client, self._client.cleanup
        # Begun here, because a task that is cancelled before its first step would never begin it. The backend is looked
        # up inside, where a client that was closed is no error.
        ending = cleanup.start(lambda: client.backend.terminate(agent_id, "released"))
        return asyncio.create_task(cleanup.wait(ending, RELEASE_WAITS_S), name="client.release")

    def agent(self, id: str, agent_type: str | type[Agent] | None = None) -> AgentHandle:
        """Return a handle of an agent by its id or bare name, without I/O; its class types input and results."""
        kind = UNTYPED if agent_type is None else kind_of(agent_type)
        return AgentHandle(self._client, self._agent_id(id), kind)

    async def agents(
        self, *, tenant: str | None = None, project: str | None = None, status: str | None = None
    ) -> list[AgentRecord]:
        """Return the live agents in the order of their names, all or those of a tenant, project or status."""
        await self.info()
        wanted = {"tenant": tenant, "project": project, "status": status}
        filters = {field: value for field, value in wanted.items() if value is not None}
        records = await self._client.backend.agents(self.name)
        return [record for record in records if all(getattr(record, f) == value for f, value in filters.items())]

    def _agent_id(self, id: str) -> str:
        pool, name = split_id(id) if isinstance(id, str) else ("", id)
        if pool and pool != self.name:
            raise InvalidInput(f'Agent {id} is of another pool, not of "{self.name}".', "$.id")
        return f"{self.name}/{check_name('agent', name)}"

    # -- tasks --------------------------------------------------------------------------------------------------

    async def run(self, agent_type: str | type[Agent], input: Any, **options: Unpack[TaskOptions]) -> Any:
        """Have any agent of the type do one task, and return its result. `options` are those of `TaskOptions`.

        `timeout` is in seconds: first the task's, and a second later the end of this wait, which cancels the task.
        """
        kind = kind_of(agent_type)
        request = new_request(self.name, kind, input, **options)
        try:
            return await run_task(self._client, request, kind)
        except UnknownPool:
            raise await self._unknown() from None

    async def submit(self, agent_type: str | type[Agent], input: Any, **options: Unpack[TaskOptions]) -> TaskHandle:
        """Hand in a task for any agent of the type: when this returns, the server has it.

        Raises `QueueFull`, `AgentLimitError`, `Unplaceable`, `IdempotencyConflict` and what else `TaskOptions` can lead
        to; then nothing was accepted.
        """
        kind = kind_of(agent_type)
        request = new_request(self.name, kind, input, **options)
        try:
            (task_id,) = await self._client.backend.submit([request])
        except UnknownPool:
            raise await self._unknown() from None
        return TaskHandle(self._client, task_id, kind)

    async def submit_many(
        self, agent_type: str | type[Agent], inputs: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> list[TaskHandle]:
        """Hand in a task for each input, with as few round trips as their size allows; handles are in their order.

        All or none: when one is refused, those before it are cancelled, and the error is raised. `options` are each
        task's, as with `submit`; with a `key` each gets `<key>/<its place>`.
        """
        kind = kind_of(agent_type)
        requests = new_requests(self.name, kind, inputs, **options)
        return await self._known(submit_tasks(self._client, requests, kind)) if requests else []

    async def schedule_agent(
        self,
        tenant_id: str,
        agent_id: str,
        agent_type: str | type[Agent],
        input: Any,
        priority: int = PRIORITY,
        timeout: float | None = 300.0,
    ) -> TaskHandle:
        """Hand in one execution for a tenant, or refuse it at once at any of the tenant's limits.

        `agent_id` is the caller's own name for the execution: the same one means the same execution. All that the
        tenant holds counts against its total: pinned agents, and tasks that run, are queued or delayed, or wait in
        mailboxes. Raises `AgentLimitError`.
        """
        kind = kind_of(agent_type)
        request = new_request(
            self.name,
            kind,
            input,
            tenant=tenant_id,
            key=agent_id,
            priority=priority,
            timeout=timeout,
            limits="total",
        )
        return (await self._known(submit_tasks(self._client, [request], kind)))[0]

    def map(
        self,
        agent_type: str | type[Agent],
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        max_parallel: int | None = None,
        ordered: bool = True,
        **options: Unpack[TaskOptions],
    ) -> AsyncGenerator[Any, None]:
        """Yield the result of a task for each input, in the order of the inputs or, with `ordered=False`, as they come.

        At most `max_parallel` (1000 unless given) tasks are handed in whose results were not yielded yet; `inputs` is
        read as they go on. A task that fails raises its error here, and ends the iteration: the others are cancelled,
        as they are when the iteration is left early (at once within `contextlib.aclosing`).
        """

        async def submit(batch: list[Any]) -> list[TaskHandle]:
            return await self.submit_many(agent_type, batch, **options)

        parallel = PARALLEL if max_parallel is None else check_count("max_parallel", max_parallel)
        return map_tasks(self._client, submit, inputs, parallel, ordered=ordered)

    def task(self, id: str, agent_type: str | type[Agent] | None = None) -> TaskHandle:
        """Return a handle of a task by its id, without I/O; the class of its agent types the result."""
        pool, name = split_id(id)
        if pool != self.name or not name:
            raise InvalidInput(f'{id} is no task of pool "{self.name}": ids are <pool>/<id>.', "$.id")
        return TaskHandle(self._client, id, UNTYPED if agent_type is None else kind_of(agent_type))

    # -- dead letters and tenants -------------------------------------------------------------------------------

    async def dead_letters(
        self, *, older_than: float | None = None, agent_type: str = "", tenant: str = ""
    ) -> AsyncGenerator[DeadLetter, None]:
        """Yield the tasks that are not tried again, oldest first: all, or those older than so many s, of a type, of a
        tenant.
        """
        await self.info()
        older_than_ms = milliseconds("older_than", older_than)
        letters = self._client.backend.dead_letters(
            self.name, older_than_ms=older_than_ms, agent_type=agent_type, tenant=tenant
        )
        async with contextlib.aclosing(letters):
            async for letter in letters:
                yield letter

    async def dead_letter(self, task_id: str) -> DeadLetter:
        """Return a dead letter; raises `UnknownTask`."""
        return await self._client.backend.dead_letter(self.task(task_id).id)

    async def replay(self, task_id: str) -> TaskHandle:
        """Submit a dead task anew, as another task; the dead letter is gone then. Raises `UnknownTask`."""
        return self.task(await self._client.backend.replay(self.task(task_id).id))

    async def purge(self, task_ids: Iterable[str]) -> int:
        """Throw dead letters away; returns how many there were."""
        return await self._client.backend.purge([self.task(task_id).id for task_id in task_ids])

    async def tenants(self) -> list[TenantUsage]:
        """Return what each tenant uses, and its limits, in the order of their names."""
        await self.info()
        return await self._client.backend.tenants(self.name)

    async def tenant(self, name: str) -> TenantUsage:
        """Return what one tenant uses, and its limits."""
        await self.info()
        return await self._client.backend.tenant(self.name, check_name("tenant", name))

    async def limit_tenant(self, name: str, **limits: float | None) -> TenantUsage:
        """Set limits of a tenant, by the names of `TenantLimits`, while the pool runs; None takes one back to what is
        configured. Returns what stands then.
        """
        check_limits(limits)
        await self._known(self._client.backend.limit_tenant(self.name, check_name("tenant", name), limits))
        return await self._client.backend.tenant(self.name, name)

    # -- the pool itself ----------------------------------------------------------------------------------------

    async def info(self) -> PoolInfo:
        """Return the pool's settings as its leader applied them."""
        return await self._known(self._client.backend.pool_info(self.name))

    async def types(self) -> list[TypeInfo]:
        """Return the agent types of the pool."""
        await self.info()
        return await self._client.backend.types(self.name)

    async def stats(self) -> PoolStats:
        """Return the pool in numbers."""
        return await self._known(self._client.backend.stats(self.name))

    async def workers(self) -> list[WorkerRecord]:
        """Return the workers that are not gone, oldest first."""
        await self.info()
        return await self._client.backend.workers(self.name)

    async def drain(self, worker_id: str, *, reason: str = "drained on request") -> None:
        """Have a worker finish what it runs, hand its agents over and leave; returns when it was told."""
        if await self._client.backend.pool_of(worker_id) != self.name:
            raise UnknownWorker(worker_id, hint=f' It is not of pool "{self.name}".')
        await self._client.backend.drain(self.name, worker_id, reason)

    async def scale(self, workers: int) -> None:
        """Set the number of workers to keep, within `min_workers` and `max_workers`; it is remembered."""
        if not isinstance(workers, int) or isinstance(workers, bool):
            raise InvalidInput(f"workers is {workers!r}: it must be a whole number.", "$.workers")
        await self._known(self._client.backend.scale(self.name, workers))

    async def events(self, *, follow: bool = False, limit: int = 200) -> AsyncGenerator[Event, None]:
        """Yield the latest events, `limit` at most, oldest first; with `follow`, those from now on, as they come, until
        the client closes.
        """
        check_count("limit", limit)
        await self.info()
        if not follow:
            for event in await self._client.backend.events(self.name, limit):
                yield event
            return
        async with contextlib.aclosing(self._client.backend.follow([self.name])) as following:
            async for event in following:
                yield event

    async def _known(self, asked: Awaitable[T]) -> T:
        """Await something; where the pool is unknown, say which pools there are. What every task goes through does this
        by itself, as each further coroutine costs something with each.
        """
        try:
            return await asked
        except UnknownPool:
            raise await self._unknown() from None

    async def _unknown(self) -> UnknownPool:
        known = await self._client.backend.pool_names()
        return UnknownPool(self.name, known, "" if known else " Does agentpool-master run?")
