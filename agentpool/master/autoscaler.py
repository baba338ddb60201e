"""The leader's loop over a pool's size: observe, plan, act.

Growth is planned at every wake-up, from numbers that cost the same for any number of workers; what looks at each
worker (idle ones, outdated ones, utilization) only at the loop's own interval.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from agentpool.clock import monotonic
from agentpool.errors import UnknownWorker
from agentpool.master.boots import Boots
from agentpool.master.scope import PoolScope
from agentpool.policy.actions import Action, DrainWorker, SetDesired, StartWorkers
from agentpool.policy.reconcile import plan_growth, plan_shrinking, threshold
from agentpool.protocol.codec import new_id
from agentpool.protocol.events import EventName
from agentpool.protocol.records import PoolInfo, PoolView

__all__ = ["Autoscaler", "Order"]

log = structlog.get_logger("autoscaler")

INTERVAL = 1.0
"""Seconds between turns that nothing woke."""

LOCKED_OUT_DELAY = 0.02
"""Seconds until the placement lock is tried for again; all else that makes room for an order comes with a hint."""

Order = tuple[str, str]
"""A worker's id and the secret by which it proves that it was ordered."""


class Autoscaler:
    """Keeps one pool at the size it shall have, while this master leads it."""

    def __init__(self, scope: PoolScope, boots: Boots, carry_out: Callable[[Order], Awaitable[None]]) -> None:
        self._scope, self._boots, self._carry_out = scope, boots, carry_out
        self._store, self._pool = scope.store, scope.pool
        self._shrunk_at = self._scaled_at = monotonic()
        self._is_locked_out = False

    async def scale_once(self) -> float | None:
        """Place who waits, start what is missing, let go what is too many; returns when it wants to run again."""
        if not self._scope.token:
            return None
        _, _, next_due_ms = await self._store.agents.place_pending(self._pool, self._scope.token)
        if (unsettled := self._scope.settled_at - monotonic()) > 0:
            return min(INTERVAL, unsettled)
        info, view = await self._store.pools.info(self._pool), await self._store.pools.observe(self._pool)
        await self._stop_or_resume_restarts(info)
        self._is_locked_out = False
        for action in await self._plan(info, view):
            await self._act(action)
        waits = [INTERVAL, *([next_due_ms / 1000 + 0.001] if next_due_ms >= 0 else [])]
        if self._is_locked_out:
            waits.append(LOCKED_OUT_DELAY)
        elif backoff := self._boots.delay():
            waits.append(backoff)
        return min(waits)

    async def _plan(self, info: PoolInfo, view: PoolView) -> list[Action]:
        limits = self._scope.limits()
        growth = plan_growth(limits, info, view)
        if growth or monotonic() - self._shrunk_at < INTERVAL:
            return growth
        self._shrunk_at = monotonic()
        workers = await self._store.workers.all(self._pool)
        since_ms = int((monotonic() - self._scaled_at) * 1000)
        step = threshold(limits, workers, info.floor, since_ms)
        if step:
            self._scaled_at = monotonic()
        if step > 0:
            return plan_growth(limits, info, view, step=step)
        return plan_shrinking(limits, info, view, workers, step=step)

    async def _act(self, action: Action) -> None:
        match action:
            case SetDesired(workers=count):
                await self._store.pools.update(self._pool, self._scope.token, "desired", count)
            case StartWorkers(count=count):
                await self._start(count)
            case DrainWorker(process_id=worker, reason=reason, only_idle=only_idle):
                await self._drain(worker, reason, only_idle)

    async def _drain(self, worker: str, reason: str, only_idle: bool) -> None:
        try:
            await self._store.workers.drain(self._pool, worker, reason=reason, only_idle=only_idle)
        except UnknownWorker:
            log.debug("worker.gone_before_drain", pool=self._pool, process_id=worker)

    async def _start(self, count: int) -> None:
        """Order workers under the placement lock, then fork them; what could not be ordered now is planned again."""
        if self._boots.given_up or self._boots.delay() > 0:
            return
        orders = [(new_id(), new_id()) for _ in range(min(count, self._scope.settings.max_starting))]
        async with self._store.locks.placement(self._pool, self._scope.master) as placement:
            if not placement:
                self._is_locked_out = True
                return
            ordered = await self._store.workers.reserve(
                self._pool,
                orders,
                leader=self._scope.token,
                placement=placement,
                master=self._scope.master,
                max_starting=self._scope.settings.max_starting,
            )
        if ordered is None:
            log.warning("leader.fenced", pool=self._pool, master=self._scope.master)
            return
        await asyncio.gather(*(self._carry_out(order) for order in orders if order[0] in ordered))

    async def _stop_or_resume_restarts(self, info: PoolInfo) -> None:
        """Write down that restarts are given up, once; when the mark was taken away, begin anew."""
        reason = self._boots.given_up
        if reason and not self._boots.told:
            self._boots.told = True
            await self._store.pools.update(
                self._pool, self._scope.token, "restarts", reason, EventName.POOL_RESTARTS_STOPPED
            )
            log.error(
                EventName.POOL_RESTARTS_STOPPED,
                pool=self._pool,
                reason=reason,
                next_step=f"mend the cause, then: agentpool scale {self._pool} --workers N, or reload the master",
            )
        elif reason and not info.restarts:
            self._boots.reset()
            log.info(EventName.POOL_RESTARTS_RESUMED, pool=self._pool)
