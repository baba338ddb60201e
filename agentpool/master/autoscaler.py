"""The leader's loop over a pool's size: observe, plan, act.

Growth is planned at every wake-up, from numbers that cost the same for any number of workers; what looks at each
worker (idle ones, outdated ones, utilization) only at the loop's own interval.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

import structlog

from agentpool.clock import monotonic
from agentpool.errors import UnknownPool, UnknownWorker
from agentpool.master.boots import Boots
from agentpool.master.scope import PoolScope
from agentpool.master.starter import Order
from agentpool.policy.actions import Action, DrainWorker, SetDesired, SetRenewing, StartWorkers
from agentpool.policy.labelled import plan_labelled_growth
from agentpool.policy.reconcile import plan_growth, plan_shrinking, threshold
from agentpool.policy.renewal import plan_renewal
from agentpool.policy.spreading import open_hosts, spread
from agentpool.protocol.codec import new_id
from agentpool.protocol.events import EventName
from agentpool.protocol.records import HostRecord, HostsView, PoolInfo, PoolView, WorkerRecord

__all__ = ["Autoscaler"]

log = structlog.get_logger("autoscaler")

INTERVAL = 1.0
"""Seconds between turns that nothing woke."""

FORGET_AFTER = 3
"""Heartbeat timeouts after which a host without a living master and workers leaves the list."""

LOCKED_OUT_DELAY = 0.02
"""Seconds until the placement lock is tried for again; all else that makes room for an order comes with a hint."""


class Autoscaler:
    """Keeps one pool at the size it shall have, while this master leads it."""

    def __init__(self, scope: PoolScope, boots: Boots, carry_out: Callable[[Order], Awaitable[None]]) -> None:
        self._scope, self._boots, self._carry_out = scope, boots, carry_out
        self._store, self._pool = scope.store, scope.pool
        self._shrunk_at = self._scaled_at = monotonic()
        self._is_locked_out = self._is_full = False

    async def scale_once(self) -> float | None:
        """Place who waits, start what is missing, let go what is too many; returns when it wants to run again."""
        if not self._scope.token:
            return None
        _, _, next_due_ms = await self._store.agents.place_pending(self._pool, self._scope.token)
        if (unsettled := self._scope.settled_at - monotonic()) > 0:
            return min(INTERVAL, unsettled)
        try:
            info, view = await self._store.pools.info(self._pool), await self._store.pools.observe(self._pool)
        except UnknownPool:
            return None  # a server that came back empty: the next turn at leading writes the pool again
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
        growth = await self._growth(info, view)
        if growth or (not info.renewing and monotonic() - self._shrunk_at < INTERVAL):
            return growth
        self._shrunk_at = monotonic()
        workers, hosts = await self._store.workers.all(self._pool), await self._store.hosts.view(self._pool)
        await self._forget_silent_hosts(hosts, workers)
        renewal = plan_renewal(info, view, workers, hosts, self._scope.alive_ms)
        if renewal is not None:
            return renewal
        since_ms = int((monotonic() - self._scaled_at) * 1000)
        step = threshold(limits, workers, info.floor, since_ms)
        if step:
            self._scaled_at = monotonic()
        if step > 0:
            return plan_growth(limits, info, view, step=step)
        return plan_shrinking(limits, info, view, workers, step=step)

    async def _growth(self, info: PoolInfo, view: PoolView) -> list[Action]:
        """Plan what waits; each worker is looked at only if some of that needs labels."""
        limits = self._scope.limits()
        demand = await self._store.pools.demand(self._pool) if view.due or view.runnable_tasks else {}
        if not demand:
            return plan_growth(limits, info, view)
        workers, hosts = await self._store.workers.all(self._pool), await self._store.hosts.view(self._pool)
        return plan_labelled_growth(limits, info, view, demand, workers, hosts)

    async def _act(self, action: Action) -> None:
        match action:
            case SetDesired(workers=count):
                await self._store.pools.update(self._pool, self._scope.token, "desired", count)
            case SetRenewing(on=on):
                await self._store.pools.update(self._pool, self._scope.token, "renewing", "1" if on else "")
            case StartWorkers():
                await self._start(action)
            case DrainWorker(process_id=worker, reason=reason, only_idle=only_idle):
                await self._drain(worker, reason, only_idle)
            case _:
                assert_never(action)

    async def _drain(self, worker: str, reason: str, only_idle: bool) -> None:
        try:
            await self._store.workers.drain(
                self._pool, worker, reason=reason, only_idle=only_idle, leader=self._scope.token
            )
        except UnknownWorker:
            log.debug("worker.gone_before_drain", pool=self._pool, process_id=worker)

    async def _forget_silent_hosts(self, view: HostsView, workers: Sequence[WorkerRecord]) -> None:
        """Take hosts off the list whose masters are silent for long and whose workers are gone."""
        silent_ms = int(FORGET_AFTER * self._scope.settings.heartbeat_timeout * 1000)
        gone = {host.master for host in view.hosts} - {host.master for host in view.living(silent_ms)}
        for master in gone - {worker.master for worker in workers}:
            await self._store.hosts.forget(self._pool, master, token=self._scope.token, silent_ms=silent_ms)

    # -- starting -----------------------------------------------------------------------------------------------

    async def _start(self, action: StartWorkers) -> None:
        """Order workers of the hosts with most room, under the placement lock, and start those of this host; what could
        not be ordered now is planned again.
        """
        view = await self._store.hosts.view(self._pool)
        able = [host for host in open_hosts(view, self._scope.alive_ms, action.labels) if self._may_start(host)]
        count = min(action.count, self._scope.settings.max_starting)
        near = [host for host in able if host.master == action.master]
        masters = spread(near, count, view.uncounted()) or spread(able, count, view.uncounted())
        self._note_room(bool(masters) or not able)
        if not masters:
            return
        orders = [(master, (new_id(), new_id())) for master in masters]
        async with self._store.locks.placement(self._pool, self._scope.master) as placement:
            if not placement:
                self._is_locked_out = True
                return
            ordered = [await self._reserve(master, orders, placement) for master in dict.fromkeys(masters)]
        done = {worker for workers in ordered for worker in workers}
        await asyncio.gather(
            *(self._carry_out(order) for master, order in orders if master == self._scope.master and order[0] in done)
        )

    async def _reserve(self, master: str, orders: Sequence[tuple[str, Order]], placement: str) -> list[str]:
        ordered = await self._store.workers.reserve(
            self._pool,
            [order for whose, order in orders if whose == master],
            leader=self._scope.token,
            placement=placement,
            master=master,
            max_starting=self._scope.settings.max_starting,
        )
        if ordered is None:
            log.warning("leader.fenced", pool=self._pool, master=self._scope.master)
        return ordered or []

    def _may_start(self, host: HostRecord) -> bool:
        """Of this very host, more is known than it has reported."""
        return host.master != self._scope.master or not (self._boots.given_up or self._boots.delay() > 0)

    def _note_room(self, is_there: bool) -> None:
        if not is_there and not self._is_full:
            log.warning(
                "hosts.full",
                pool=self._pool,
                next_step="add a host, or change max_host_workers or min_free_memory_mb; look: agentpool hosts",
            )
        self._is_full = not is_there

    async def _stop_or_resume_restarts(self, info: PoolInfo) -> None:
        """Write down that restarts are given up on every host, once; when the mark was taken away, begin anew."""
        reason = self._boots.given_up
        if not reason:
            return
        others = [
            host
            for host in open_hosts(await self._store.hosts.view(self._pool), self._scope.alive_ms)
            if host.master != self._scope.master
        ]
        if others and self._boots.told and info.restarts:
            self._boots.told = False  # there is a host now that may start them
            await self._store.pools.update(self._pool, self._scope.token, "restarts", "")
        elif not others and not self._boots.told:
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
        elif self._boots.told and not info.restarts:
            self._boots.reset()
            log.info(EventName.POOL_RESTARTS_RESUMED, pool=self._pool)
