"""The heartbeat: a thread, so that it goes on when an agent blocks the event loop, and says so.

Each beat asks the essential loops for a turn (`turns.py`), tells Redis that the worker lives and how late its loops
are, and passes on what Redis answers. Three things end the process at once, without a further word to Redis: the
answer that the worker was given up; waking up after having been frozen for longer than the lease, when others may
have taken over already; and, should no master do it, loops that stay blocked for twice the time allowed.
"""

import contextvars
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog

from agentpool.clock import boottime, monotonic
from agentpool.errors import RedisUnavailable
from agentpool.protocol.events import EventName
from agentpool.protocol.records import Beat
from agentpool.protocol.zygote import Exit, WorkerSettings
from agentpool.store.connection import SyncConnection
from agentpool.store.events import add_event
from agentpool.store.workers import beat_worker
from agentpool_worker.process import leave, private_bytes
from agentpool_worker.turns import Turns

__all__ = ["Heartbeat"]

log = structlog.get_logger("heartbeat")

MEMORY_INTERVAL = 30.0
BLOCKED_AFTER_MIN = 2.0
TRY_MAX = 2.0
"""Seconds that one beat may take when Redis is cut off, where the lease is shorter."""
MASTER_LATE = 2.0
"""Seconds that a master which lives needs at most to see a beat and to end the process."""


class Heartbeat:
    """`on_beat(beat)`, `on_cut_off()` when Redis was away for nearly the lease, and `on_orphaned()` when the master is
    gone for too long, are called in this thread, as are: `who_runs()`, which names what the event loop is busy with,
    `warm()`, for which tasks it has agents, `listens()`, whether commands reach it, and `ahead()`, how many quick tasks
    it may be given beyond its slots.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        worker_id: str,
        connection: SyncConnection,
        turns: Turns,
        *,
        on_beat: Callable[[Beat], None],
        on_return: Callable[[], None],
        on_cut_off: Callable[[], None],
        on_orphaned: Callable[[], None],
        who_runs: Callable[[], str],
        warm: Callable[[], str],
        listens: Callable[[], bool],
        ahead: Callable[[], int],
    ) -> None:
        self._settings, self._worker_id, self._connection = settings, worker_id, connection
        self._turns, self._who_runs, self._warm, self._listens, self._ahead = turns, who_runs, warm, listens, ahead
        self._on_beat, self._on_return, self._on_cut_off = on_beat, on_return, on_cut_off
        self._on_orphaned = on_orphaned
        self._known_run: str | None = None
        """The run of the server in which it last knew this worker."""
        self._stopped = self._retiring = False
        self._blocked_after = max(2 * settings.heartbeat_interval, BLOCKED_AFTER_MIN)
        self._blocked = self._overdue = False
        self._failing = self._cut_off = False
        self._answered = self._looked = boottime()
        # Two beats before the lease ends, so that what must not run twice has stopped by then.
        self._cut_off_after = max(settings.heartbeat_timeout - 2 * settings.heartbeat_interval, 0.0)
        self._orphanhood = Orphanhood(settings)
        self._memory_due = 0.0
        self._cpu = (time.process_time(), monotonic())
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def retiring(self) -> None:
        """From now on, being gone is what this worker itself wanted."""
        self._retiring = True

    def lease_left(self) -> float:
        """Return the seconds until what may not run twice has to stop; may be asked in any thread."""
        return self._cut_off_after - (boottime() - self._answered)

    def stop(self) -> None:
        """Beat no more; returns without waiting for a beat under way."""
        self._stopped = True

    def _run(self) -> None:
        interval = self._settings.heartbeat_interval
        # A random phase, so that many workers started together do not beat together.
        due = monotonic() + interval * random.random()  # noqa: S311 (no secret)
        while not self._stopped:
            self._sleep_until(due)
            self.beat_once()
            # On an absolute schedule; what a slow beat missed is left out.
            due += interval * max(1, -(-(monotonic() - due) // interval))

    def _sleep_until(self, due: float) -> None:
        """Sleep. Whoever was frozen meanwhile, or during the beat before, past its lease, does not come back."""
        before, delay = boottime(), max(0.0, due - monotonic())
        time.sleep(delay)
        now, lease = boottime(), self._settings.heartbeat_timeout
        if now - before > delay + lease or now - self._looked > delay + max(lease, TRY_MAX):
            log.error("worker.frozen", seconds=round(now - self._looked, 1))
            leave(Exit.FROZEN, flush=False)
        self._looked = now

    def beat_once(self) -> None:
        """Send one beat and act on the answer."""
        lag, asked = self._turns.lag(), boottime()
        self._turns.ask()
        try:
            if boottime() - self._answered > self._settings.heartbeat_timeout:
                # What it sends may arrive though it hears nothing: then it must not seem to live.
                self._connection.ping()
            beat = beat_worker(
                self._connection,
                self._settings.pool,
                self._worker_id,
                loop_lag_ms=round(1000 * lag),
                memory_bytes=self._memory(),
                cpu_percent=self._cpu_percent(),
                warm=self._warm(),
                listens=self._listens(),
                ahead=self._ahead(),
            )
        except RedisUnavailable as error:
            self._note_failure(error)
        else:
            returned = self._failing
            self._failing = self._cut_off = False
            self._answered = asked  # the answer may have waited while this process was frozen
            self._act_on(beat, lag, returned)
        self._watch(lag)

    def _act_on(self, beat: Beat | None, lag: float, returned: bool) -> None:
        try:
            run = self._connection.server_run() if returned or self._known_run is None or not beat else self._known_run
        except RedisUnavailable as error:
            self._note_failure(error)
            return
        if beat:
            self._known_run = run
            if returned:
                self._on_return()
            self._on_beat(beat)
            if self._orphanhood.is_over(beat.master_beat, monotonic()):
                self._on_orphaned()
        elif run != self._known_run and lag < self._settings.heartbeat_timeout:
            self._on_return()  # the server may have lost this worker with its latest writes: it is told again
        elif not self._retiring:
            log.error("worker.given_up")
            leave(Exit.GIVEN_UP, flush=False)

    def _note_failure(self, error: RedisUnavailable) -> None:
        self._memory_due = 0.0  # what was measured may not have arrived
        if not self._failing:
            self._failing = True
            log.warning("redis.unavailable", doing="beat", error=str(error))
        if boottime() - self._answered > self._cut_off_after and not self._cut_off:
            self._cut_off = True
            self._on_cut_off()

    # -- figures ------------------------------------------------------------------------------------------------

    def _memory(self) -> int | None:
        now = monotonic()
        if now < self._memory_due:
            return None
        self._memory_due = now + MEMORY_INTERVAL
        return private_bytes()

    def _cpu_percent(self) -> float:
        now = (time.process_time(), monotonic())
        (used, at), self._cpu = self._cpu, now
        return 100 * (now[0] - used) / max(now[1] - at, 0.001)

    # -- blocked loops ------------------------------------------------------------------------------------------

    def _watch(self, lag: float) -> None:
        """Say once when the loops are late, and once when they turn again."""
        if lag > self._blocked_after and not self._blocked:
            self._blocked = True
            self._report(EventName.WORKER_BLOCKED, lag)
        elif lag < self._blocked_after and self._blocked:
            self._blocked = self._overdue = False
            self._report(EventName.WORKER_UNBLOCKED, lag)
        if lag > self._settings.block_timeout and not self._overdue:
            self._overdue = True
            log.error("worker.blocked_too_long", seconds=round(lag, 1), stack=main_stack())
        if lag > 2 * self._settings.block_timeout + MASTER_LATE:
            # Its master should have done this by now.
            leave(Exit.BLOCKED, flush=False)

    def _report(self, name: EventName, lag: float) -> None:
        who = self._who_runs()
        if name is EventName.WORKER_BLOCKED:
            log.error(name, seconds=round(lag, 1), running=who, stack=main_stack())
        else:
            log.info(name)
        detail = f"its loops are {lag:.1f} s late; running: {who or 'unknown'}" if lag > self._blocked_after else ""
        try:
            add_event(self._connection, self._settings.pool, name, process_id=self._worker_id, detail=detail)
        except RedisUnavailable as error:
            self._note_failure(error)


class Orphanhood:
    """How long this worker has been without its master, by the beats of both in Redis.

    Only time in which this worker itself got answers counts, and after a gap it counts anew: while Redis is away,
    nobody beats.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._timeout = settings.orphan_timeout
        self._step_max = 2 * settings.heartbeat_interval
        self._beat, self._asked_at, self._alone = 0, 0.0, 0.0

    def is_over(self, master_beat: int, now: float) -> bool:
        """Take the master's last beat, as of now in s; tells whether the master has been gone for too long."""
        step, self._asked_at = now - self._asked_at, now
        if master_beat != self._beat or step > self._step_max:
            self._beat, self._alone = master_beat, 0.0
        else:
            self._alone += step
        return 0 < self._timeout <= self._alone


def main_stack() -> str:
    """Return the Python stack of the main thread, where the event loop is."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident else None
    return "".join(traceback.format_stack(frame)) if frame else "unknown"
