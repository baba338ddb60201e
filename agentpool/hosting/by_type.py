"""Warm agents for tasks by type: an in-process pool per type and tenant, all within the capacity of one host.

A task by type holds a slot for its lease, and its agent is made inside that slot. Agents are kept per tenant, as state
must not leak between tenants, unless their class says that they may be shared. Pinned and pooled agents together stay
within the capacity: whoever comes evicts the idle one that was used longest ago. Beyond it there are, for a moment, the
successor of an agent that is recycled, one per type and tenant, and agents that have ended and still clean up.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from agentpool.agent import AgentType
from agentpool.hosting.place import Place
from agentpool.pool import AgentPool, Lease

__all__ = ["ByType"]

SHARED_TENANT = "default"
"""The tenant that a shared agent is told of when it is started; its runs are told their own."""
SPARE_POOLS = 32
"""Pools without agents that are kept for when their type and tenant come again."""


class ByType:
    """The pools; `pinned()` is the number of pinned agents of this host."""

    def __init__(self, place: Place, pinned: Callable[[], int]) -> None:
        self._place, self._pinned = place, pinned
        self._pools: OrderedDict[tuple[str, str], AgentPool] = OrderedDict()
        self.is_over = False
        """More agents than the capacity were there at the last look, and none of them could be ended."""
        self._closing: set[asyncio.Task[object]] = set()

    @property
    def count(self) -> int:
        """Pooled agents of this host; those that have ended and clean up do not count."""
        return sum(pool.total - pool.leaving for pool in self._pools.values())

    def take_idle(self, type: AgentType, tenant: str) -> Lease | None:
        """Return a warm agent that can be had without more ado, or None."""
        pool = self._pools.get((type.name, _tenant_of(type, tenant)))
        return pool.take_idle() if pool else None

    def has_idle(self, type: AgentType, tenant: str) -> bool:
        """Tell whether `take_idle` would return one."""
        pool = self._pools.get((type.name, _tenant_of(type, tenant)))
        return pool is not None and pool.idle > 0

    @property
    def warm(self) -> list[str]:
        """`<type>/<tenant>` of which there are agents; may be read in another thread."""
        pools = list(self._pools.items())
        return [f"{name}/{tenant}" for (name, tenant), pool in pools if pool.total > pool.leaving]

    async def acquire(self, type: AgentType, tenant: str) -> Lease:
        """Return a started agent for one task; raises what `AgentPool.acquire` does."""
        pool = await self._pool(type, _tenant_of(type, tenant))
        if pool.oldest_idle() is None and not pool.unclaimed:
            self._evict_down_to(self._place.settings.capacity - 1)
        return await pool.acquire()

    def release(self, lease: Lease) -> None:
        """Keep an agent for the next task, unless it is broken."""
        lease.release()
        if self.is_over:
            self.make_room()

    def make_room(self) -> None:
        """Evict idle agents until the capacity is kept."""
        self._evict_down_to(self._place.settings.capacity)

    async def close(self) -> None:
        """Stop all agents; nothing runs on them any more."""
        while self._pools:
            self._close(self._pools.popitem()[1])
        while self._closing:
            await asyncio.wait(self._closing)

    async def _pool(self, type: AgentType, tenant: str) -> AgentPool:
        key = (type.name, tenant)
        pool = self._pools.get(key)
        if pool is None:
            self._close_spare_pools()
            pool = self._pools[key] = AgentPool(
                type.cls,
                self._place.settings.agents,
                name=self._place.pool,
                context=partial(self._place.context, tenant=tenant),
                times_runs=False,  # nobody asks: each task says it of itself
            )
            await pool.open()
        self._pools.move_to_end(key)
        return pool

    def _evict_down_to(self, most: int) -> None:
        excess = self._pinned() + self.count - most
        while excess > 0 and self._evict_one():
            excess -= 1
        self.is_over = excess > 0

    def _evict_one(self) -> bool:
        """End the agent that was idle for longest, one with idle siblings before one that is the last of its kind; or
        else one that is being made and is no longer wanted.
        """
        idle = [pool for pool in self._pools.values() if pool.idle]
        if idle:
            return min(idle, key=lambda pool: (pool.idle < 2, pool.oldest_idle() or 0.0)).evict()
        return any(pool.evict() for pool in self._pools.values())

    def _close_spare_pools(self) -> None:
        spare = [key for key, pool in self._pools.items() if not pool.total]
        for key in spare[: max(0, len(spare) + 1 - SPARE_POOLS)]:
            self._close(self._pools.pop(key))

    def _close(self, pool: AgentPool) -> None:
        task: asyncio.Task[object] = asyncio.create_task(pool.close(0), name=f"close pool {pool.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _tenant_of(type: AgentType, tenant: str) -> str:
    """Return whose agents of this type a tenant uses: its own, or those that all share."""
    return SHARED_TENANT if type.cls.scope == "shared" else tenant
