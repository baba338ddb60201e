"""Carries requests out in this process: no Redis, no workers, the same words.

A client owns its local pools: they begin when it opens and end when it closes. What needs more processes than this one
is refused and says so.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from agentpool.agent import AgentType, Context
from agentpool.client.backend import Waiter
from agentpool.client.local.events import EventLog
from agentpool.client.local.pool import LocalPool
from agentpool.client.requests import Request, Spawn
from agentpool.client.tasks import run_nested
from agentpool.config import PoolSettings
from agentpool.errors import (
    NoCapacity,
    PoolClosed,
    UnknownAgent,
    UnknownPool,
    UnknownTask,
    UnknownWorker,
    WorkersNeeded,
)
from agentpool.protocol.commands import AgentEnded
from agentpool.protocol.events import Event, TaskEvent
from agentpool.protocol.keys import pool_of, split_id
from agentpool.protocol.limits import TenantUsage
from agentpool.protocol.records import AgentRecord, PoolInfo, PoolStats, TypeInfo, WorkerRecord
from agentpool.protocol.states import AgentStatus
from agentpool.protocol.tasks import DeadLetter, Outcome

__all__ = ["LocalBackend"]


class LocalBackend:
    """See `agentpool.client.backend.Backend`. `pools` are the settings and the agent types of each pool, `labels` what
    this process has that agents and tasks may ask for.
    """

    def __init__(
        self, pools: Mapping[str, tuple[PoolSettings, Mapping[str, AgentType]]], labels: Collection[str] = ()
    ) -> None:
        self._given, self._labels = pools, labels
        self._pools: dict[str, LocalPool] = {}
        self._events = EventLog()
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        for name, (settings, types) in sorted(self._given.items()):
            self._pools[name] = LocalPool(name, settings, types, self._labels, self._events, self._run_by_type)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close local pools")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))
        self._events.close()

    # -- agents -------------------------------------------------------------------------------------------------

    async def spawn(self, request: Spawn, timeout: float | None) -> None:
        pool = self._pool(pool_of(request.agent_id))
        pool.agents.place(request)
        word = pool.agents.expect(request.agent_id)
        try:
            await asyncio.wait([word], timeout=timeout)
        except asyncio.CancelledError:
            pool.agents.withdraw(request.agent_id, request.operation, even_if_it_runs=True)
            raise
        finally:
            pool.agents.expect_no_more(request.agent_id, word)
        if not word.done():
            record = pool.agents.find(split_id(request.agent_id)[1])
            if not pool.agents.withdraw(request.agent_id, request.operation, even_if_it_runs=False):
                raise NoCapacity(pool.name, 1, pool.tasks.running.free(), _why(pool, record))
        elif isinstance(ended := word.result(), AgentEnded):
            raise request.ended_early(ended.status, ended.detail)

    async def agent(self, agent_id: str) -> AgentRecord:
        return self._pool_of_agent(agent_id).agents.get(agent_id)

    async def agents(self, pool: str) -> list[AgentRecord]:
        return self._pool(pool).agents.all()

    async def terminate(self, agent_id: str, reason: str) -> None:
        self._pool_of_agent(agent_id).agents.terminate(agent_id, reason)

    # -- tasks --------------------------------------------------------------------------------------------------

    async def submit(self, requests: Sequence[Request]) -> list[str]:
        return self._pool(pool_of(requests[0].task_id)).tasks.submit(requests)

    async def run(self, request: Request) -> Outcome:
        return await self._pool(pool_of(request.task_id)).tasks.run(request)

    def tell(self, task_id: str, waiter: Waiter) -> None:
        self._pool_of_task(task_id).tasks.tell(task_id, waiter)

    async def outcome(self, task_id: str, timeout: float | None) -> Outcome:
        return await self._pool_of_task(task_id).tasks.outcome(task_id, timeout)

    async def cancel(self, task_id: str) -> bool:
        return self._pool_of_task(task_id).tasks.cancel(task_id) != "finished"

    async def task_info(self, task_id: str) -> dict[str, Any]:
        return self._pool_of_task(task_id).tasks.info(task_id)

    async def follow_task(self, task_id: str) -> AsyncGenerator[TaskEvent, None]:
        async for event in self._pool_of_task(task_id).tasks.follow(task_id):
            yield event

    # -- dead letters and tenants -------------------------------------------------------------------------------

    async def dead_letters(
        self, pool: str, *, older_than_ms: int, agent_type: str, tenant: str
    ) -> AsyncGenerator[DeadLetter, None]:
        letters = self._pool(pool).tasks.letters
        for letter in letters.all(older_than_ms=older_than_ms, agent_type=agent_type, tenant=tenant):
            yield letter

    async def dead_letter(self, task_id: str) -> DeadLetter:
        return self._pool_of_task(task_id).tasks.letters.get(task_id)

    async def replay(self, task_id: str) -> str:
        return self._pool_of_task(task_id).tasks.replay(task_id)

    async def purge(self, task_ids: Sequence[str]) -> int:
        return sum(self._pool_of_task(task_id).tasks.letters.purge([task_id]) for task_id in task_ids)

    async def tenants(self, pool: str) -> list[TenantUsage]:
        tasks = self._pool(pool).tasks
        return [tasks.tenant(name) for name in tasks.tenant_names()]

    async def tenant(self, pool: str, tenant: str) -> TenantUsage:
        return self._pool(pool).tasks.tenant(tenant)

    async def limit_tenant(self, pool: str, tenant: str, limits: Mapping[str, float | None]) -> None:
        self._pool(pool).tasks.limit_tenant(tenant, limits)

    # -- pools --------------------------------------------------------------------------------------------------

    async def pool_names(self) -> list[str]:
        return sorted(self._pools)

    async def pool_info(self, pool: str) -> PoolInfo:
        return self._pool(pool).info()

    async def types(self, pool: str) -> list[TypeInfo]:
        return self._pool(pool).types()

    async def stats(self, pool: str) -> PoolStats:
        return self._pool(pool).stats()

    async def workers(self, pool: str) -> list[WorkerRecord]:
        return await self._pool(pool).workers()

    async def pool_of(self, worker_id: str) -> str:
        for pool in self._pools.values():
            if pool.worker_id == worker_id:
                return pool.name
        raise UnknownWorker(worker_id, hint=" List workers with: await pool.workers()")

    async def drain(self, pool: str, worker_id: str, reason: str) -> None:
        raise WorkersNeeded("Draining a worker")

    async def scale(self, pool: str, workers: int) -> None:
        self._pool(pool)
        raise WorkersNeeded("Scaling a pool")

    async def events(self, pool: str, limit: int) -> list[Event]:
        return self._events.read(self._pool(pool).name, limit)

    def follow(self, pools: Sequence[str]) -> AsyncGenerator[Event, None]:
        return self._events.follow(pools)

    # -- inside -------------------------------------------------------------------------------------------------

    def _pool(self, name: str) -> LocalPool:
        if self._closing:
            raise PoolClosed("The client of these local pools was closed. Open a new one.")
        try:
            return self._pools[name]
        except KeyError:
            raise UnknownPool(name, sorted(self._pools)) from None

    def _pool_of_agent(self, agent_id: str) -> LocalPool:
        try:
            return self._pool(pool_of(agent_id))
        except UnknownPool:
            raise UnknownAgent(agent_id, hint=" List agents with: await pool.agents()") from None

    def _pool_of_task(self, task_id: str) -> LocalPool:
        try:
            return self._pool(pool_of(task_id))
        except UnknownPool:
            raise UnknownTask(task_id) from None

    async def _run_by_type(self, context: Context, agent_type: Any, input: Any, *, timeout: float | None = None) -> Any:
        """What `ctx.run` does; a task may ask for others until it ends, also while the pools close."""
        tasks = self._pools[context.pool].tasks
        return await run_nested(partial(tasks.run, nested=True), context, agent_type, input, timeout=timeout)


def _why(pool: LocalPool, record: AgentRecord | None) -> str:
    """Tell why an agent did not run in time, and what to do."""
    if record is None or record.status is AgentStatus.PENDING:
        return pool.why_no_room()
    if record.failures:
        return f"Its start() keeps failing: {record.last_error}"
    return "Its start() was still running: allow a longer timeout."
