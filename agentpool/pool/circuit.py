"""Whether agents are started now: a breaker, and what it is told of starts and of agents that broke.

An agent that has done a task well and lived for `breaker_backoff`, or has lived for `breaker_backoff_max`, has proved
itself: that it breaks later says nothing about the next start. One that breaks before counts as a failed start, else a
`background()` that raises at once would have agents started for ever.
"""

import logging
import random

from agentpool.clock import monotonic
from agentpool.policy.breaker import (
    Breaker,
    BreakerSettings,
    after_early_end,
    after_failure,
    after_start,
    after_success,
    may_try,
    retry_in,
    with_trial,
    without_trial,
)
from agentpool.pool.calls import Ended
from agentpool.pool.config import PoolConfig
from agentpool.pool.errors import SpawnCircuitOpen, StartFailed
from agentpool.pool.instance import Instance, facts_of_failure
from agentpool.pool.member import Member

__all__ = ["Circuit"]

log = logging.getLogger(__name__)


class Circuit:
    """`failures` counts the starts that failed; `chance` gives the jitter of the delays."""

    def __init__(self, config: PoolConfig, pool: str, chance: random.Random) -> None:
        self._pool, self._chance = pool, chance
        self._settings = BreakerSettings(
            failures_max=config.breaker_failures,
            backoff=config.breaker_backoff,
            backoff_max=config.breaker_backoff_max,
        )
        self.breaker = Breaker()
        self.failures = 0
        self._reason = "unknown"

    def permits(self) -> bool:
        """Tell whether a start may begin now."""
        return may_try(self.breaker, monotonic())

    def retry_in(self) -> float | None:
        """Return in how many s a start may begin; None when that hangs on the trial under way."""
        return None if self.breaker.trial else retry_in(self.breaker, monotonic())

    def error(self) -> SpawnCircuitOpen:
        """Return the error for those who cannot be served while no starts are permitted."""
        return SpawnCircuitOpen(
            self._pool, self.breaker.in_a_row, retry_in(self.breaker, monotonic()), self._reason
        )  # fmt: skip

    # -- starts -------------------------------------------------------------------------------------------------

    def note_begin(self) -> None:
        """A permitted start begins: the trial, if only one is permitted."""
        self.breaker = with_trial(self.breaker)

    def note_start(self) -> None:
        """An agent has started."""
        self.breaker = after_start(self.breaker, monotonic())

    def note_failure(self, instance: Instance, ended: Ended) -> StartFailed:
        """An agent did not start; returns the error for whom it was meant."""
        self.failures += 1
        self._reason = reason = instance.broken or ended.describe("start()")
        self.breaker = after_failure(self.breaker, self._settings, monotonic(), self._chance.random())
        log.warning("pool.start_failed", extra=facts_of_failure(instance.id, reason, instance.traceback))
        return StartFailed(instance.id, reason, instance.traceback)

    def note_called_off(self) -> None:
        """A start was ended before anything came of it."""
        self.breaker = without_trial(self.breaker)

    # -- lives --------------------------------------------------------------------------------------------------

    def note_run(self, member: Member) -> bool:
        """An agent that had not proved itself did a task well; tells whether it has proved itself by that."""
        if monotonic() - member.instance.born < self._settings.backoff:
            return False
        member.proved = True
        self.breaker = after_success(self.breaker)
        return True

    def note_broken(self, instance: Instance) -> None:
        """An agent broke that had not proved itself by its work."""
        now = monotonic()
        if now - instance.born < self._settings.backoff_max:
            self.breaker = after_early_end(self.breaker, self._settings, now, self._chance.random())
            self._reason = instance.broken
