"""Failed boots in a row: each delays the next start, and after a number of them starts stop."""

import random

from agentpool.clock import monotonic
from agentpool.policy.restarts import next_restart

__all__ = ["Boots"]


class Boots:
    """Counts failed boots of one pool's workers on this host. Times are in seconds."""

    def __init__(self, *, failures_max: int, backoff: float, backoff_max: float) -> None:
        self.failures_max, self.backoff, self.backoff_max = failures_max, backoff, backoff_max
        self.given_up = ""
        """Why no worker is started any more, or ''."""
        self.told = False
        self._failures = 0
        self._not_before = 0.0

    def delay(self) -> float:
        """Return how long to wait before the next start."""
        return max(0.0, self._not_before - monotonic())

    def failed(self, reason: str, *, counts: bool = True) -> None:
        """Note a failed boot; one that does not count only delays the next."""
        self._failures += counts
        wait = next_restart(
            max(1, self._failures),
            backoff=self.backoff,
            backoff_max=self.backoff_max,
            failures_max=self.failures_max,
            jitter=random.random(),  # noqa: S311 (jitter, no secret)
        )
        if wait is None:
            self.given_up = f"{self._failures} workers in a row failed to start; the last: {reason}"
        else:
            self._not_before = monotonic() + wait

    def reset(self) -> None:
        """Begin anew: a worker registered, or an operator said so."""
        self.given_up, self.told = "", False
        self._failures, self._not_before = 0, 0.0
