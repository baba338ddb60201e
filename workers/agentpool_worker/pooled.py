"""Agents kept for tasks by type: a cache, evictable whenever idle.

A task by type holds a slot in Redis for its lease, and its agent is made inside that slot. Agents are kept per tenant,
as state must not leak between tenants, unless their class says that they may be shared. Pinned and pooled agents
together stay within the worker's capacity: whoever comes evicts the idle one that was used longest ago.
"""

import asyncio
from collections.abc import Callable

import structlog

from agentpool.agent import AgentType
from agentpool.protocol.codec import new_id
from agentpool_worker.instance import Instance
from agentpool_worker.place import WorkPlace
from agentpool_worker.run import Run

__all__ = ["Pooled"]

log = structlog.get_logger("worker")

SHARED_TENANT = "default"
"""The tenant that a shared agent is told of when it is started; its runs are told their own."""


class Pooled:
    """The cache; `pinned()` is the number of pinned agents on this worker."""

    def __init__(self, place: WorkPlace, pinned: Callable[[], int]) -> None:
        self._place, self._pinned = place, pinned
        self._idle: list[Instance] = []
        self._busy: set[Instance] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def acquire(self, type: AgentType, tenant: str, run: Run) -> Instance:
        """Return a started agent for one task; raises `StartFailed`, also when the run is stopped meanwhile."""
        tenant = SHARED_TENANT if type.cls.scope == "shared" else tenant
        for instance in reversed(self._idle):
            if instance.type is type and instance.tenant == tenant:
                self._idle.remove(instance)
                self._busy.add(instance)
                return instance
        instance = Instance(self._place, type, f"{self._place.pool}/{new_id()}", tenant=tenant)
        self._busy.add(instance)
        self.make_room()
        run.attach(instance.stop_now)
        try:
            await instance.start()
        except BaseException:
            self._discard(instance)
            raise
        instance.broken.add_done_callback(lambda _: self._broke(instance))
        return instance

    def release(self, instance: Instance) -> None:
        """Keep an agent for the next task, unless it is broken."""
        if instance.broken.done():
            self._discard(instance)
        else:
            self._busy.discard(instance)
            self._idle.append(instance)
            self.make_room()

    def make_room(self) -> None:
        """Evict idle agents until the worker's capacity is kept."""
        while self._idle and self._pinned() + len(self._idle) + len(self._busy) > self._place.settings.capacity:
            self._discard(self._idle[0])

    async def close(self) -> None:
        """Stop all agents; nothing runs on them any more."""
        for instance in [*self._idle, *self._busy]:
            self._discard(instance)
        while self._closing:
            await asyncio.wait(self._closing)

    def _broke(self, instance: Instance) -> None:
        log.error("agent.failed", agent_id=instance.agent_id, error=instance.broken.result())
        if instance in self._idle:
            self._discard(instance)

    def _discard(self, instance: Instance) -> None:
        if instance in self._idle:
            self._idle.remove(instance)
        self._busy.discard(instance)
        task = asyncio.create_task(instance.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
