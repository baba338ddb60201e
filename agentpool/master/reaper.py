"""Giving back what dead workers held.

A worker of this host is dead when its process ended, which its pidfd tells at once: no timeout is waited for, and
nothing is given away while the process may still run. Workers of other hosts are dead when the leader has missed their
beats for long enough; the script itself checks that, and that the leader was not away meanwhile.
"""

from collections.abc import Mapping
from pathlib import Path

import structlog

from agentpool.clock import monotonic
from agentpool.config import PoolSettings
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.leavings import remove_leavings
from agentpool.master.scope import PoolScope
from agentpool.protocol.deaths import Death, Exited, Silent, by_itself, was_stopped
from agentpool.protocol.events import EventName
from agentpool.protocol.marks import blame, mark_path, read_marks
from agentpool.protocol.records import HostsView
from agentpool.protocol.states import WorkerStatus
from agentpool.protocol.zygote import Exit
from agentpool.store.workers import Proof

__all__ = ["Reaper"]

log = structlog.get_logger("reaper")

SCAN_INTERVAL = 0.9
"""Seconds between scans: a little less than the loop's own interval, so that wake-ups do not add any."""


class Reaper:
    """Reaps for one pool. Times are in seconds."""

    def __init__(self, scope: PoolScope, crew: Crew, boots: Boots) -> None:
        self._scope, self._crew, self._boots = scope, crew, boots
        self._store, self._pool = scope.store, scope.pool
        self._scanned_at = 0.0

    async def reap_once(self) -> None:
        """Bury this host's dead at once; as the leader, at intervals, what others left and who fell silent."""
        await self.bury_own_dead()
        if self._scope.token and monotonic() - self._scanned_at >= SCAN_INTERVAL:
            self._scanned_at = monotonic()
            await self.finish_lost_workers()
            view = await self._store.hosts.view(self._pool)
            await self.take_back_orders(view)
            await self.reap_silent_workers(view)

    async def bury_own_dead(self) -> None:
        """Give back what processes of this host held that ended; repeated until Redis has taken it."""
        for worker_id, death in list(self._crew.dead.items()):
            await self._note_failed_boot(worker_id, death)
            marks = mark_path(self._scope.mark_dir, worker_id)
            result = await self._reap(
                worker_id, "owner", self._scope.master, str(death), blame=_read_blame(marks, death)
            )
            remove_leavings(self._scope.root.data_dir, worker_id)
            self._crew.dead.pop(worker_id, None)
            self._crew.registered.discard(worker_id)
            if result == "done":
                log.warning(EventName.WORKER_REAPED, pool=self._pool, process_id=worker_id, reason=str(death))

    async def finish_lost_workers(self) -> None:
        """Go on with workers that were fenced by someone who did not finish."""
        for worker_id in await self._store.workers.lost(self._pool):
            await self._reap(worker_id, "lost", self._scope.token, "its reaping was taken over")

    async def take_back_orders(self, view: HostsView) -> None:
        """Give up orders that nobody has begun to carry out, because the master that they name is gone."""
        alive_ms = self._scope.alive_ms
        living = {host.master for host in view.living(alive_ms)}
        for order in view.orders:
            if order.is_begun or order.master in living or view.now_ms - order.at < alive_ms:
                continue
            why = f"the master {order.master} is gone"
            await self._reap(order.worker, "unstarted", self._scope.token, why, alive_ms / 1000)

    async def reap_silent_workers(self, view: HostsView) -> None:
        """Reap by time those whose processes this master does not hold."""
        settings = self._scope.settings
        shortest = min(settings.heartbeat_timeout, settings.start_timeout)
        living = {host.master for host in view.living(int(settings.heartbeat_timeout * 1000))}
        for worker in await self._store.workers.silent(self._pool, view.now_ms - int(shortest * 1000)):
            worker_id = worker.process_id
            if worker_id in self._crew.processes or worker_id in self._crew.dead:
                continue
            is_starting = worker.status in (WorkerStatus.ORDERED, WorkerStatus.STARTING)
            timeout = silence_allowed(is_starting=is_starting, has_master=worker.master in living, settings=settings)
            proof: Proof = "unstarted" if is_starting else "stale"
            result = await self._reap(worker_id, proof, self._scope.token, str(Silent(timeout)), timeout)
            if result == "done":
                log.warning(EventName.WORKER_REAPED, pool=self._pool, process_id=worker_id, reason=str(Silent(timeout)))

    async def _reap(
        self,
        worker_id: str,
        proof: Proof,
        authority: str,
        reason: str,
        timeout: float = 0,
        blame: Mapping[str, str] | None = None,
    ) -> str:
        return await self._store.workers.reap(
            self._pool,
            worker_id,
            proof=proof,
            authority=authority,
            reason=reason,
            timeout_ms=int(timeout * 1000),
            crashes_max=self._boots.failures_max,
            backoff_ms=int(self._boots.backoff * 1000),
            blame=blame,
        )

    async def _note_failed_boot(self, worker_id: str, death: object) -> None:
        """A worker that died before it registered failed at boot; that Redis was away is not its fault."""
        if worker_id in self._crew.registered:
            return
        status = await self._store.workers.status(worker_id)
        if status not in (WorkerStatus.ORDERED, WorkerStatus.STARTING):
            return
        self._boots.failed(str(death), counts=death != Exited(Exit.NOT_REGISTERED))
        await self._store.events.add(self._pool, EventName.WORKER_BOOT_FAILED, process_id=worker_id, detail=str(death))
        log.warning(EventName.WORKER_BOOT_FAILED, pool=self._pool, process_id=worker_id, reason=str(death))


def silence_allowed(*, is_starting: bool, has_master: bool, settings: PoolSettings) -> float:
    """Return the silence in s after which the leader gives a worker up whose process another master holds.

    That master, if it lives, sees more than silence: it kills a frozen worker before its work is given away, and leaves
    one longer that is only busy. It is waited for, but not for ever.
    """
    if has_master:
        return settings.start_timeout if is_starting else settings.block_timeout + 2 * settings.heartbeat_timeout
    return min(settings.start_timeout, settings.heartbeat_timeout) if is_starting else settings.heartbeat_timeout


def _read_blame(path: Path, death: Death) -> Mapping[str, str]:
    """Say of each task that had begun in a process that died whether it may have killed it; nothing is known of one
    that left no marks.
    """
    try:
        begun, on_cpu = read_marks(path.read_bytes())
    except OSError:
        return {}
    killed_at = monotonic() if was_stopped(death) else 0.0
    return blame(begun, on_cpu, by_itself=by_itself(death), killed_at=killed_at)
