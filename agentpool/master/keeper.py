"""One pool of this master: its zygote, its crew, and the loops over them.

Stopping order, and why: first the autoscaler, so that nothing is started in place of what stops; then the leadership
is handed over, so that other hosts can take the agents; then all workers drain at once, so that none receives what
another gives up; those that do not finish are killed and what they held is given back; last the zygote.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable

import msgspec
import structlog

from agentpool.clock import monotonic
from agentpool.config import PoolSettings
from agentpool.errors import AgentPoolError, ConfigError, UnknownWorker
from agentpool.master import auditor, starter, timekeeper
from agentpool.master.auditor import Auditor
from agentpool.master.autoscaler import INTERVAL, Autoscaler
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.leadership import Leadership
from agentpool.master.reaper import Reaper
from agentpool.master.reporter import Reporter
from agentpool.master.scope import PoolScope
from agentpool.master.starter import Starter
from agentpool.master.timekeeper import Timekeeper
from agentpool.master.watcher import DRAIN_MARGIN, Watcher
from agentpool.master.worker_process import WorkerProcess
from agentpool.master.zygotes import Zygote
from agentpool.periodic import Periodic
from agentpool.protocol.zygote import Fork, Prepare

__all__ = ["PoolKeeper"]

log = structlog.get_logger("keeper")

LEAD_INTERVAL = 1.0
WATCH_INTERVAL = 1.0
SETTLE_MARGIN = 1.0
"""Seconds beside two heartbeats in which workers tell a server that started anew what they have."""


class PoolKeeper:
    """Runs one pool on this host. `open`, then `start`; `stop` in the end. `workers()` counts those of all pools."""

    def __init__(self, scope: PoolScope, workers: Callable[[], int]) -> None:
        self.scope = scope
        settings = scope.settings
        self.boots = Boots(
            failures_max=settings.boot_failures_max,
            backoff=settings.boot_backoff,
            backoff_max=settings.boot_backoff_max,
        )
        self.crew = Crew(scope.pool, self._on_death)
        self.leadership = Leadership(scope, self._on_election, self._on_restart)
        self._zygote = Zygote(scope.pool, self.crew.note_status)
        self._mending = asyncio.Lock()
        """One zygote is started in place of another at a time, however many orders wait for it."""
        self._reporter = Reporter(scope, self.boots, workers)
        self._starter = Starter(scope, self.crew, self.boots, self._fork)
        self._reporting = Periodic(f"host {scope.pool}", self._reporter.report_once, self._reporter.interval)
        self._starting = Periodic(f"starts {scope.pool}", self._starter.start_once, starter.INTERVAL)
        self._leading = Periodic(f"leadership {scope.pool}", self.leadership.lead_once, LEAD_INTERVAL)
        self._scaling = Periodic(
            f"autoscaler {scope.pool}", Autoscaler(scope, self.boots, self._starter.carry_out).scale_once, INTERVAL
        )
        self._reaping = Periodic(f"reaper {scope.pool}", Reaper(scope, self.crew, self.boots).reap_once, INTERVAL)
        self._timing = Periodic(f"timers {scope.pool}", Timekeeper(scope).fire_once, timekeeper.INTERVAL)
        self._auditing = Periodic(f"audit {scope.pool}", Auditor(scope).drain_once, auditor.INTERVAL)
        self._watching = Periodic(
            f"watcher {scope.pool}", Watcher(scope, self.crew, self.boots).watch_once, WATCH_INTERVAL
        )

    @property
    def loops(self) -> tuple[Periodic, ...]:
        """The loops whose turning shows that this master lives."""
        return (
            self._leading,
            self._reporting,
            self._reaping,
            self._scaling,
            self._starting,
            self._watching,
            self._timing,
            self._auditing,
        )

    @property
    def workers(self) -> int:
        """Worker processes of the pool on this host, those included that are about to be."""
        return len(self.crew.processes.keys() | self._starter.under_way)

    async def open(self) -> None:
        """Import the agent modules; raises `ConfigError` with the traceback, or because this release is too old."""
        await self._reporter.check()
        await self._zygote.start(self._prepare())
        self._note_types()

    async def start(self) -> None:
        """Adopt what an earlier master left, and begin to supervise."""
        await self._reporter.join()
        await self._adopt_all()
        await self.leadership.lead_once()
        for loop in self.loops:
            loop.start()

    async def _adopt_all(self) -> None:
        """Take over every worker of this master that is not held yet."""
        scope = self.scope
        self.crew.adopt_all(await scope.store.workers.all(scope.pool), scope.master, scope.host)

    def wake(self) -> None:
        """Something changed: look now."""
        self._reaping.wake()
        self._scaling.wake()

    def wake_all(self) -> None:
        """Redis may have been away: let no loop wait longer."""
        for loop in self.loops:
            loop.wake()

    def wake_timers(self) -> None:
        """A timer was set that is due before all others."""
        self._timing.wake()

    def wake_starts(self) -> None:
        """The leader ordered workers of this host; if it is this master, they are under way."""
        if not self.scope.token:
            self._starting.wake()

    def wake_leadership(self) -> None:
        """The leader resigned: see at once whether to lead."""
        self._leading.wake()

    async def apply(self, settings: PoolSettings) -> None:
        """Take new settings; agent types that do not import leave the pool as it was and raise `ConfigError`."""
        previous = self.scope.settings
        self.scope.settings = settings
        if settings.agents != previous.agents:
            await self._replace_zygote(previous)
        self.boots.failures_max = settings.boot_failures_max
        self.boots.backoff, self.boots.backoff_max = settings.boot_backoff, settings.boot_backoff_max
        self.boots.reset()
        await self._reporter.report_once()
        if self.scope.token:
            await self._write_settings(self.scope.token)
        self.wake()

    async def stop(self, hurry: asyncio.Event, *, remove: bool = False) -> None:
        """Drain and end everything of this pool on this host; with `remove` the pool goes out of service. What another
        process beats for under the same id is left alone.
        """
        for loop in (self._scaling, self._reporting, self._starting, self._leading, self._timing, self._auditing):
            await loop.stop()
        try:
            if not await self._reporter.is_refused():
                await self._leave(hurry, remove=remove)
        except AgentPoolError as error:
            log.error("pool.stop_incomplete", pool=self.scope.pool, error=str(error))
        finally:
            await self._end_all()
        for loop in (self._watching, self._reaping):
            await loop.stop()
        await self._bury_last()
        await self._zygote.close()

    async def _leave(self, hurry: asyncio.Event, *, remove: bool) -> None:
        if remove:
            await self._remove()
        await self._reporter.leave()
        await self._starter.give_up_orders()
        await self._adopt_all()  # what was forked while the loops were stopped
        await self.leadership.resign()
        await self._drain_all(hurry)

    async def _remove(self) -> None:
        """Take the pool out of service, unless masters of other hosts go on with it."""
        scope = self.scope
        hosts = (await scope.store.hosts.view(scope.pool)).living(scope.alive_ms)
        if scope.token and all(host.master == scope.master for host in hosts):
            await scope.store.pools.remove(scope.pool, scope.token)

    async def hand_over(self) -> None:
        """Leave all workers running, and what this master leads to the others."""
        with contextlib.suppress(AgentPoolError):
            await self.leadership.resign()
        await self.abandon()

    async def abandon(self) -> None:
        """Stop supervising and leave all workers running."""
        for loop in self.loops:
            await loop.stop()
        self.crew.forget()
        await self._zygote.close()

    # -- what the loops call ------------------------------------------------------------------------------------

    def _on_death(self) -> None:
        self._reporting.wake()
        self.wake()

    async def _on_election(self, token: str) -> None:
        await self._write_settings(token)
        self._scaling.wake()

    async def _on_restart(self, token: str) -> None:
        """The server has started anew: what this master wrote is written again, as it may be lost; the numbers are not
        trusted until the workers had time to do the same.
        """
        scope = self.scope
        scope.settled_at = monotonic() + 2 * scope.settings.heartbeat_interval + SETTLE_MARGIN
        await scope.store.pools.keep_install_id(scope.install)
        if token:
            await self._write_settings(token)
        await self._adopt_all()  # what had left by then may stand there again
        self.wake()

    async def _write_settings(self, token: str) -> None:
        await self.scope.store.pools.apply(self.scope.pool, token, self._zygote.types, self.scope.applied())

    async def _fork(self, order: Fork) -> tuple[WorkerProcess, int]:
        await self._ensure_zygote()
        self._reporting.wake()
        return await self._zygote.fork(order, self.crew.note_end)

    async def _ensure_zygote(self) -> None:
        """Start another zygote when the last one died; workers that it forked live on."""
        async with self._mending:
            if not self._zygote.alive:
                log.warning("zygote.restarted", pool=self.scope.pool)
                await self._start_zygote()

    async def _replace_zygote(self, previous: PoolSettings) -> None:
        async with self._mending:
            try:
                await self._start_zygote()
            except ConfigError:
                self.scope.settings = previous
                raise

    async def _start_zygote(self) -> None:
        """Put another zygote in the place of the present one, whose types are the pool's until it is ready."""
        fresh = Zygote(self.scope.pool, self.crew.note_status)
        await fresh.start(self._prepare())
        old, self._zygote = self._zygote, fresh
        self._note_types()
        await old.close()

    def _note_types(self) -> None:
        """Remember what workers have that are started now: what changes when release or agent types do."""
        described = msgspec.json.encode([self.scope.settings.agents, self._zygote.types])
        self.scope.types_hash = hashlib.sha256(described).hexdigest()[:16]
        self.scope.release = self._zygote.release

    def _prepare(self) -> Prepare:
        return Prepare(
            agents=self.scope.settings.agents, app_dir=self.scope.root.app_dir, worker=self.scope.worker_settings()
        )

    # -- stopping -----------------------------------------------------------------------------------------------

    async def _drain_all(self, hurry: asyncio.Event) -> None:
        """Have every worker hand over; ends when all have left, at the deadline, or when told to hurry."""
        scope = self.scope
        # At once: what one gives up shall not go to the next that is about to drain.
        await asyncio.gather(*(self._drain_or_kill(worker_id) for worker_id in list(self.crew.processes)))
        deadline = monotonic() + scope.settings.drain_timeout + scope.settings.agent_stop_timeout
        hurried = False
        while self.crew.processes and monotonic() < deadline:
            if hurry.is_set() and not hurried:
                hurried = True
                deadline = min(deadline, monotonic() + DRAIN_MARGIN)
                for process in list(self.crew.processes.values()):
                    process.hurry()
            await _any_of([process.ended for process in self.crew.processes.values()], [] if hurried else [hurry])

    async def _drain_or_kill(self, worker_id: str) -> None:
        """A worker that is still starting holds nothing: it is ended at once."""
        process = self.crew.processes[worker_id]
        try:
            await self.scope.store.workers.drain(self.scope.pool, worker_id, reason="its master stops")
        except UnknownWorker:
            process.kill("it is not registered")
        except AgentPoolError as error:
            process.kill(f"its master stops: {error}")

    async def _end_all(self) -> None:
        """The last rung: whoever is still there is killed."""
        for process in list(self.crew.processes.values()):
            log.warning("worker.killed", pool=self.scope.pool, process_id=process.worker_id, pid=process.pid)
            process.kill("it did not finish within the stopping time")
            await process.ended.wait()

    async def _bury_last(self) -> None:
        try:
            await Reaper(self.scope, self.crew, self.boots).bury_own_dead()
        except AgentPoolError as error:
            log.error("pool.stop_incomplete", pool=self.scope.pool, error=str(error))


async def _any_of(ended: Iterable[asyncio.Event], also: Iterable[asyncio.Event]) -> None:
    """Wait until one of the events is set, half a second at most."""
    waits = [asyncio.ensure_future(event.wait()) for event in (*ended, *also)]
    try:
        await asyncio.wait(waits, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
