"""What is kept of tasks that have ended, for those who ask later, and what idempotency keys stand for."""

from collections import OrderedDict

from agentpool.client.local.trails import Trail
from agentpool.clock import monotonic
from agentpool.errors import UnknownTask
from agentpool.protocol.tasks import Outcome

__all__ = ["Keys", "Outcomes"]

OUTCOMES_MAX = 100_000
"""Outcomes kept; the oldest are forgotten first."""


class Outcomes:
    """Outcomes by the id of their task, for `ttl` seconds."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._kept: OrderedDict[str, tuple[float, Outcome, Trail | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, task_id: str, outcome: Outcome, trail: Trail | None) -> None:
        """Keep an outcome, and what the task reported."""
        self._kept[task_id] = (monotonic() + self._ttl, outcome, trail)
        self.forget()

    def get(self, task_id: str) -> Outcome:
        """Return an outcome; raises `UnknownTask`."""
        return self._find(task_id)[1]

    def trail(self, task_id: str) -> Trail | None:
        """Return what a task reported; raises `UnknownTask`."""
        return self._find(task_id)[2]

    def __contains__(self, task_id: str) -> bool:
        self.forget()
        return task_id in self._kept

    def forget(self) -> None:
        """Forget what is too old or too much."""
        while self._kept:
            deadline = next(iter(self._kept.values()))[0]
            if deadline > monotonic() and len(self._kept) <= OUTCOMES_MAX:
                return
            self._kept.popitem(last=False)

    def _find(self, task_id: str) -> tuple[float, Outcome, Trail | None]:
        if task_id not in self:
            raise UnknownTask(task_id, hint=" Outcomes are kept for the pool's result_ttl.")
        return self._kept[task_id]


class Keys:
    """Tasks by the digest of their idempotency key: while they are unfinished, and `ttl` seconds after."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._keys: dict[str, tuple[str, str]] = {}
        self._shared: set[str] = set()
        self._ending: OrderedDict[str, float] = OrderedDict()
        """Those whose task has ended, in the order in which they are forgotten."""

    def find(self, digest: str) -> tuple[str, str] | None:
        """Return the task's id and the digest of its input."""
        self._forget()
        return self._keys.get(digest)

    def add(self, digest: str, task_id: str, input_digest: str) -> None:
        """The key means this task from now on."""
        self.drop(digest)
        self._keys[digest] = task_id, input_digest

    def share(self, digest: str) -> None:
        """The key's task was asked for again."""
        self._shared.add(digest)

    def give_up(self, digest: str, task_id: str) -> bool:
        """Who asked for the key's task waits no more: if nobody else did, the key means nothing any more. Tells whether
        that is so.
        """
        if self._means(digest, task_id):
            if digest in self._shared:
                return False
            self.drop(digest)
        return True

    def task_ended(self, digest: str, task_id: str) -> None:
        """A task that had this key has its outcome."""
        if self._means(digest, task_id):
            self._ending[digest] = monotonic() + self._ttl
        self._forget()

    def drop(self, digest: str) -> None:
        """The key means nothing any more."""
        self._keys.pop(digest, None)
        self._shared.discard(digest)
        self._ending.pop(digest, None)

    def _means(self, digest: str, task_id: str) -> bool:
        return digest in self._keys and self._keys[digest][0] == task_id

    def _forget(self) -> None:
        while self._ending:
            digest, deadline = next(iter(self._ending.items()))
            if deadline > monotonic():
                return
            self.drop(digest)
