"""Looking after the living processes of this host: frozen, blocked, never registered, or draining for too long.

Each ends by SIGKILL, after which the pidfd tells and the reaper gives back what it held: kill first, then give away.
"""

import structlog

from agentpool.clock import monotonic
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.scope import PoolScope
from agentpool.master.worker_process import WorkerProcess
from agentpool.policy.liveness import Sign, Verdict, judge
from agentpool.protocol.events import EventName
from agentpool.protocol.states import WorkerStatus

__all__ = ["Watcher"]

log = structlog.get_logger("watcher")

GAP = 2.0
"""Seconds without a look (Redis away, this master frozen) after which silence proves nothing for a while."""
DRAIN_MARGIN = 5.0


class Watcher:
    """Watches one pool's processes."""

    def __init__(self, scope: PoolScope, crew: Crew, boots: Boots) -> None:
        self._scope, self._crew, self._boots = scope, crew, boots
        self._store, self._pool = scope.store, scope.pool
        self._looked_at = monotonic()
        # A master that starts knows nothing of what was before: Redis may have been away with everyone's beats.
        self._trust_from = monotonic() + scope.settings.heartbeat_timeout

    async def watch_once(self) -> None:
        """Look at each living process once."""
        processes = list(self._crew.processes.values())
        if not processes:
            self._looked_at = monotonic()
            return
        turn_ms, is_held, signs = await self._store.workers.signs(self._pool, [p.worker_id for p in processes])
        self._note_look()
        for process in processes:
            sign = signs.get(process.worker_id)
            if sign is None:
                self._check_unregistered(process, is_held)
                continue
            process.unregistered_since = None
            beat_ms, lag_ms, status = sign
            if status in (WorkerStatus.ORDERED, WorkerStatus.STARTING):
                self._check_start(process)
                continue
            self._note_registered(process.worker_id)
            self._check_drain(process, status)
            if not is_held:
                await self._check_life(process, turn_ms - beat_ms, lag_ms)

    def _note_look(self) -> None:
        now = monotonic()
        if now - self._looked_at > GAP:
            self._trust_from = now + self._scope.settings.heartbeat_timeout
        self._looked_at = now

    def _note_registered(self, worker_id: str) -> None:
        if worker_id not in self._crew.registered:
            self._crew.registered.add(worker_id)
            self._boots.reset()

    def _check_unregistered(self, process: WorkerProcess, is_held: bool) -> None:
        """A process that Redis does not know was given up, or has just retired: it has a moment to leave. Or the server
        has started anew and lost it: in the hold it tells of itself again.
        """
        if is_held:
            process.unregistered_since = None
        elif process.unregistered_since is None:
            process.unregistered_since = monotonic()
        elif monotonic() - process.unregistered_since > DRAIN_MARGIN:
            process.kill("it is not registered and did not leave")

    def _check_start(self, process: WorkerProcess) -> None:
        timeout = self._scope.settings.start_timeout
        if monotonic() - process.started_at > timeout:
            process.kill(f"did not register within {timeout:g} s")

    def _check_drain(self, process: WorkerProcess, status: str) -> None:
        timeout = self._scope.settings.drain_timeout
        if status != WorkerStatus.DRAINING:
            return
        if process.draining_since is None:
            process.draining_since = monotonic()
        elif monotonic() - process.draining_since > timeout + DRAIN_MARGIN:
            process.kill(f"did not finish draining within {timeout:g} s")

    async def _check_life(self, process: WorkerProcess, silence_ms: int, lag_ms: int) -> None:
        if monotonic() < self._trust_from:
            return
        sign = Sign(
            silence_ms=silence_ms,
            loop_lag_ms=lag_ms,
            stopped=process.is_stopped(),
            cpu_busy=process.is_busy(),
        )
        match judge(sign, self._scope.deadlines()):
            case Verdict.FROZEN:
                log.warning("worker.frozen", pool=self._pool, process_id=process.worker_id, silence_ms=silence_ms)
                process.kill(f"frozen: no heartbeat for {silence_ms / 1000:.1f} s")
            case Verdict.BLOCKED:
                await self._end_blocked(process, max(silence_ms, lag_ms))
            case Verdict.WELL:
                pass

    async def _end_blocked(self, process: WorkerProcess, lag_ms: int) -> None:
        stack = await process.stack(self._scope.stack_dir)
        log.error(
            EventName.WORKER_BLOCKED,
            pool=self._pool,
            process_id=process.worker_id,
            pid=process.pid,
            blocked_ms=lag_ms,
            stack=stack,
        )
        process.kill(f"an agent blocked its event loop for {lag_ms / 1000:.1f} s")
