"""What was handed in of late, in case the server loses it with its latest writes.

A server that syncs its file every second may lose two seconds when its machine fails; the bounds are well above that
but for a worker whose tasks are large, which keeps fewer.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from agentpool.clock import monotonic
from agentpool.protocol.tasks import ClaimedTask
from agentpool.store.tasks import EndedTask

__all__ = ["KEPT_S", "Recent"]

KEPT_S = 5.0
STEP_S = 1.0
"""So much of the time between two exchanges counts at most: an outage between them makes nothing older."""
KEPT_S_MAX = 120.0
KEPT_TASKS = 5000
KEPT_BYTES = 8_000_000

Ended = tuple[ClaimedTask, EndedTask]


class Recent:
    """The last tasks that ended with an outcome, by the exchanges in which they were handed in."""

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float, int, Sequence[Ended]]] = deque()
        self._tasks = self._bytes = 0
        self._clock, self._added_at = 0.0, monotonic()

    def add(self, batch: Sequence[Ended]) -> None:
        """Keep what one exchange handed in, and forget what is older, or too much."""
        if not batch:
            return
        now = monotonic()
        size = sum([len(end.outcome) + (len(task.envelope.input) if task.envelope else 0) for task, end in batch])
        self._clock += min(now - self._added_at, STEP_S)
        self._added_at = now
        self._batches.append((self._clock, now, size, batch))
        self._tasks += len(batch)
        self._bytes += size
        batches = self._batches
        while batches and (self._is_old(now) or self._tasks > KEPT_TASKS or self._bytes > KEPT_BYTES):
            *_, size, batch = batches.popleft()
            self._tasks -= len(batch)
            self._bytes -= size

    def _is_old(self, now: float) -> bool:
        clock, added_at, _, _ = self._batches[0]
        return self._clock - clock > KEPT_S or now - added_at > KEPT_S_MAX

    def all(self) -> Iterator[Ended]:
        """Yield those that came to an outcome; what went back is no end."""
        for *_, batch in self._batches:
            for task, ended in batch:
                if ended.verdict not in ("retry", "back"):
                    yield task, ended
