"""Which task by type starts when: in a free slot, on an agent of its type and tenant that is idle, else it waits here.

A worker whose tasks are short takes more than it has slots, so that it has work while an exchange is under way. Such a
task waits a moment for a warm agent rather than that another is made; what has not begun after a while goes back.
"""

import asyncio
from collections import OrderedDict, deque

from agentpool.clock import monotonic
from agentpool.hosting import GIVE_BACK, Host, Run
from agentpool_worker.place import WorkPlace

__all__ = ["Slots"]

PREFETCH, PREFETCH_MAX = 90, 190
"""Tasks beyond the slots, where they are short; and where `AHEAD_MS` are even more of them."""
AHEAD_MS = 20.0
"""Of very short tasks so much is taken ahead: what runs while an exchange brings the next hundred."""
SHORT_MS = 5.0
"""Mean run time below which tasks are short."""
VERY_SHORT_MS = 1.0
"""Mean run time below which many end while an exchange is under way."""
SOON_S = 0.02
"""How long a task waits for a warm agent rather than that another is made, where tasks are short."""
PATIENCE_S = 0.05
"""How long a task that was taken may wait for its agent here before it goes back."""

Key = tuple[str, str]
"""Agent type and tenant: tasks of one key can use one another's agents."""


class Slots:
    """Tasks by type of one worker, from when they come until they have ended."""

    def __init__(self, place: WorkPlace, host: Host) -> None:
        self._place, self._host = place, host
        self._slots = place.settings.capacity
        """What the pinned agents leave of the capacity."""
        self._taken = 0
        self._waiting: OrderedDict[Key, deque[Run]] = OrderedDict()
        self._waiting_count = 0
        self._busy: dict[Key, int] = {}
        self._ended_at: dict[Key, float] = {}
        """When a task of a key that is busy last ended."""
        self._mean_ms: float | None = None
        self._is_short = False
        self._stuck = False
        """Tasks that waited here went back, and none has ended since: no more than there are slots are taken."""
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def has_waiting(self) -> bool:
        """Tell whether tasks wait here."""
        return bool(self._waiting)

    @property
    def has_very_short(self) -> bool:
        """Tell whether what runs here is over in less than `VERY_SHORT_MS` in the mean."""
        return bool(self._taken) and self._mean_ms is not None and self._mean_ms < VERY_SHORT_MS

    def room(self) -> tuple[int, int] | None:
        """Return how many more tasks there is room for: in slots, and beyond them; None where none may be taken."""
        here = self._taken + self._waiting_count
        room, prefetch = max(0, self._slots - here), max(0, self.ahead - max(0, here - self._slots))
        return (room, prefetch) if room or prefetch or self._place.waits else None

    @property
    def ahead(self) -> int:
        """How many tasks beyond the slots may be here; may be asked in any thread."""
        mean = self._mean_ms
        if mean is None or not self._is_short or self._stuck or not self._slots:
            return 0
        return int(min(max(PREFETCH, AHEAD_MS / max(mean, 0.001)), PREFETCH_MAX))

    def changed(self) -> None:
        """Pinned agents came or went."""
        self._slots = max(0, self._place.settings.capacity - self._host.agents.count)
        self.dispatch()

    def begin(self, run: Run) -> None:
        """Start a task, or let it wait."""
        key = run.key
        queue = self._waiting.get(key)
        # Where others wait here already for the same agent that is free soon, it is behind them.
        is_behind = queue is not None and self._is_short and key in self._busy and not _is_nested(run)
        if is_behind or not self._try_to_start(run):
            if queue is None:
                queue = self._waiting[key] = deque()
            queue.append(run)
            self._waiting_count += 1
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(SOON_S, self._look_at_waiting)

    def stop(self, run: Run, why: str) -> None:
        """Stop a run, also one of a pinned agent; one that waits here ends at once."""
        waited = self._take_out(run)
        run.stop(why)
        if waited:
            self.start(run)  # which it does not get far with, but ends like all others

    def give_back_waiting(self) -> None:
        """Give back what has not begun."""
        for run in [run for queue in self._waiting.values() for run in queue]:
            self.stop(run, GIVE_BACK)

    def start(self, run: Run) -> None:
        """Start a task at once."""
        self._taken += 1
        self._busy[run.key] = self._busy.get(run.key, 0) + 1
        self._host.begin(run)

    def free(self, run: Run) -> None:
        """The slot and the agent of a run are free: for the next of its key, else for whichever can start."""
        # Not `duration_ms`: on a busy host each would seem long, and an agent be made for nearly each of them.
        took = run.own_ms
        if took is not None or run.has_begun:
            took = run.duration_ms if took is None else took
            mean = self._mean_ms = took if self._mean_ms is None else self._mean_ms + (took - self._mean_ms) / 10
            self._is_short, self._stuck = mean < SHORT_MS, False
        key = run.key
        queue = self._waiting.get(key)
        if queue and self._taken <= self._slots + self._place.waits and self._host.pass_on(run, queue[0]):
            self._ended_at[key] = monotonic()
            queue.popleft()
            self._left(key, queue)
            return
        self._taken -= 1
        busy = self._busy[key] = self._busy[key] - 1
        if busy or queue:
            self._ended_at[key] = monotonic()
        else:
            self._ended_at.pop(key, None)
        if not busy:
            del self._busy[key]
        self._host.release(run)
        self.dispatch(key)

    def dispatch(self, first: Key | None = None) -> None:
        """Start tasks that wait here: of the key whose agent has just become free, else of whichever can start."""
        if first is not None and first in self._waiting:
            self._start_waiting(first)
        elif self._waiting:
            for key in list(self._waiting):
                if self._taken >= self._slots + self._place.waits:
                    return
                self._start_waiting(key)

    def _try_to_start(self, run: Run) -> bool:
        """Start a task if there is a slot, and an agent or a reason to make one."""
        if self._taken >= self._slots + self._place.waits:
            return False
        if self._is_short and run.key in self._busy and not self._host.has_idle(*run.key) and not _is_nested(run):
            return False  # an agent of this tenant will be free sooner than another could be made
        self.start(run)
        return True

    def _start_waiting(self, key: Key) -> None:
        queue = self._waiting[key]
        while queue and self._try_to_start(queue[0]):
            queue.popleft()
            self._left(key, queue)

    def _look_at_waiting(self) -> None:
        """Make agents for those for which none became free soon, as far as there are slots; give back what has waited
        for too long.
        """
        self._sweep = None
        now = monotonic()
        for key, queue in list(self._waiting.items()):
            run = queue[0]  # who waits behind it has waited no longer
            if now - run.taken <= SOON_S or now - self._ended_at.get(key, 0.0) < SOON_S:
                continue  # its turn comes: the agents of its key do one after the other
            if self._taken < self._slots + self._place.waits:
                self._take_out(run)
                self.start(run)
            elif now - run.taken > PATIENCE_S:
                self._stuck = True
                self.stop(run, GIVE_BACK)
        if self._waiting:
            self._sweep = asyncio.get_running_loop().call_later(SOON_S, self._look_at_waiting)

    def _take_out(self, run: Run) -> bool:
        """Take a run out of those that wait here; False when it is not among them."""
        key = run.key
        queue = self._waiting.get(key)
        if not queue or run not in queue:
            return False
        queue.remove(run)
        self._left(key, queue)
        return True

    def _left(self, key: Key, queue: deque[Run]) -> None:
        """One no longer waits here."""
        self._waiting_count -= 1
        if not queue:
            del self._waiting[key]


def _is_nested(run: Run) -> bool:
    """Tell whether the task that has its tenant's agent may be waiting for this very one."""
    return run.task.header.lane.startswith("child")
