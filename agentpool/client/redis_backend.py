"""The backend on Redis: requests become calls of the store, and answers come back over `replies.py`.

Nothing above imports this before a client opens, because it costs what loading redis-py costs.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any

from agentpool.client.backend import Waiter
from agentpool.client.cleanup import Cleanup
from agentpool.client.recovering import Recovery
from agentpool.client.redis_spawning import RedisSpawning
from agentpool.client.redis_tasks import RedisTasks
from agentpool.client.replies import Replies
from agentpool.client.requests import Request, Spawn
from agentpool.periodic import end_task
from agentpool.protocol.events import Event, TaskEvent
from agentpool.protocol.limits import TenantUsage
from agentpool.protocol.records import AgentRecord, PoolInfo, PoolStats, TypeInfo, WorkerRecord
from agentpool.protocol.tasks import DeadLetter, Outcome
from agentpool.store import Store

__all__ = ["RedisBackend"]

OPEN_TIMEOUT = 1.5
"""Seconds in which a server must answer when a client opens: long enough for one that restarts."""


class RedisBackend:
    """Everything on one store. What it is for, and what each method promises, is said in `Backend`."""

    def __init__(self, store: Store, cleanup: Cleanup, *, owns_store: bool = True, data_dir: str = "") -> None:
        self.store = store
        self.data_dir = data_dir
        """Where a master of this host keeps its files."""
        self.replies = Replies(store)
        """How answers come back; it begins to listen when something waits."""
        self._cleanup, self._owns_store = cleanup, owns_store
        self._closing = asyncio.Event()
        self._spawning = RedisSpawning(store, self.replies, cleanup)
        self._tasks = RedisTasks(store, self.replies, cleanup)
        self._recovery = Recovery(store, self._tasks.hand_in, self._spawning.place, self.replies.refuse)
        self.replies.recovery = self._recovery

    async def open(self) -> None:
        """Raise `RedisUnavailable` unless the server answers, `ConfigError` if this release is too old for a pool."""
        await self.store.pools.check_release(timeout=OPEN_TIMEOUT)
        await self._recovery.begin(OPEN_TIMEOUT)

    async def close(self) -> None:
        """Stop listening, which begins again when something waits; close the store unless it is someone else's."""
        self._closing.set()
        self._closing.clear()  # those who follow wake up all the same, and others may begin
        await self.replies.close()
        await self._cleanup.close()  # of what those who waited have just taken back
        if self._owns_store:
            await self.store.close()

    # -- agents -------------------------------------------------------------------------------------------------

    async def spawn(self, request: Spawn, timeout: float | None) -> None:
        await self._spawning.spawn(request, timeout)

    async def agent(self, agent_id: str) -> AgentRecord:
        return await self._recovery.insist(lambda: self.store.agents.get(agent_id))

    async def agents(self, pool: str) -> list[AgentRecord]:
        return await self.store.agents.all(pool)

    async def terminate(self, agent_id: str, reason: str) -> None:
        await self._recovery.insist(lambda: self.store.agents.terminate(agent_id, detail=reason))

    # -- tasks --------------------------------------------------------------------------------------------------

    # Those that every task goes through pass coroutines on: to await one within another costs something with each.

    def submit(self, requests: Sequence[Request]) -> Coroutine[Any, Any, list[str]]:
        return self._tasks.submit(requests)

    def run(self, request: Request) -> Coroutine[Any, Any, Outcome]:
        return self._tasks.run(request)

    def tell(self, task_id: str, waiter: Waiter) -> None:
        self.replies.tell(task_id, waiter)

    def outcome(self, task_id: str, timeout: float | None) -> Coroutine[Any, Any, Outcome]:
        return self._tasks.outcome(task_id, timeout)

    async def cancel(self, task_id: str) -> bool:
        return await self.store.tasks.cancel(task_id) != "finished"

    async def task_info(self, task_id: str) -> dict[str, Any]:
        return await self.store.tasks.info(task_id)

    def follow_task(self, task_id: str) -> AsyncGenerator[TaskEvent, None]:
        return self._tasks.follow(task_id)

    # -- dead letters and tenants -------------------------------------------------------------------------------

    def dead_letters(
        self, pool: str, *, older_than_ms: int, agent_type: str, tenant: str
    ) -> AsyncGenerator[DeadLetter, None]:
        return self.store.letters.all(pool, older_than_ms=older_than_ms, agent_type=agent_type, tenant=tenant)

    async def dead_letter(self, task_id: str) -> DeadLetter:
        return await self.store.letters.get(task_id)

    async def replay(self, task_id: str) -> str:
        return await self.store.letters.replay(task_id)

    async def purge(self, task_ids: Sequence[str]) -> int:
        return await self.store.letters.purge(task_ids)

    async def tenants(self, pool: str) -> list[TenantUsage]:
        return [await self.store.tenants.usage(pool, name) for name in await self.store.tenants.names(pool)]

    async def tenant(self, pool: str, tenant: str) -> TenantUsage:
        return await self.store.tenants.usage(pool, tenant)

    async def limit_tenant(self, pool: str, tenant: str, limits: Mapping[str, float | None]) -> None:
        await self.store.tenants.limit(pool, tenant, limits)

    # -- pools --------------------------------------------------------------------------------------------------

    async def pool_names(self) -> list[str]:
        return await self.store.pools.names()

    async def pool_info(self, pool: str) -> PoolInfo:
        return await self._recovery.insist(lambda: self.store.pools.info(pool))

    async def types(self, pool: str) -> list[TypeInfo]:
        return await self.store.pools.types(pool)

    async def stats(self, pool: str) -> PoolStats:
        return await self.store.pools.stats(pool, await self.store.workers.all(pool))

    async def workers(self, pool: str) -> list[WorkerRecord]:
        return await self.store.workers.all(pool)

    async def pool_of(self, worker_id: str) -> str:
        return await self.store.workers.pool_of(worker_id)

    async def drain(self, pool: str, worker_id: str, reason: str) -> None:
        await self.store.workers.drain(pool, worker_id, reason=reason)

    async def scale(self, pool: str, workers: int) -> None:
        await self.store.pools.scale(pool, workers)

    async def events(self, pool: str, limit: int) -> list[Event]:
        return await self.store.events.read(pool, limit)

    async def follow(self, pools: Sequence[str]) -> AsyncGenerator[Event, None]:
        closing = asyncio.create_task(self._closing.wait())
        try:
            async with contextlib.aclosing(self.store.events.follow(pools)) as events:
                while event := await _next(events, closing):
                    yield event
        finally:
            closing.cancel()


async def _next(events: AsyncGenerator[Event, None], closing: "asyncio.Task[Any]") -> Event | None:
    """Return the next event, or None when `closing` has ended."""
    coming: asyncio.Task[Event] = asyncio.create_task(_step(events))
    try:
        await asyncio.wait([coming, closing], return_when=asyncio.FIRST_COMPLETED)
        return None if closing.done() else coming.result()
    finally:
        await end_task(coming)


async def _step(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)
