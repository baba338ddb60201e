"""A queue of tasks that wait, of which any may be taken out."""

import heapq
from itertools import count

__all__ = ["TaskQueue"]

SLACK = 16
_order = count()


class TaskQueue:
    """Ids by rank, first come first served within one. `len()` counts those that still wait.

    Taking an id out costs nothing: its entry is passed over when its turn comes, or swept out with many others.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._waiting: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, task_id: str, rank: float = 0.0) -> None:
        """Add an id; the smaller its rank, the sooner it comes."""
        heapq.heappush(self._heap, (rank, next(_order), task_id))
        self._waiting.add(task_id)

    def pop(self) -> str:
        """Take out the next id; there must be one."""
        while True:
            task_id = heapq.heappop(self._heap)[2]
            if task_id in self._waiting:
                self._waiting.remove(task_id)
                return task_id

    def remove(self, task_id: str) -> None:
        """Take an id out, wherever it stands."""
        self._waiting.discard(task_id)
        if len(self._heap) > 2 * len(self._waiting) + SLACK:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)

    def all(self) -> list[str]:
        """Return the ids that wait, in no particular order."""
        return list(self._waiting)
