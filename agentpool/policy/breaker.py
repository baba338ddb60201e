"""Whether something that keeps failing is tried again: closed, open until a time, then one trial.

Closed: everything may be tried. After `failures_max` failures in a row it opens, for a time that doubles with each
failed trial. When the time is over one trial may begin; what comes of it closes or opens it again.

What started well may still break at once. Such an early end is a failure, too, and then a good start alone proves
nothing: the count goes on, so that the delay still grows, until one has proved itself or `backoff_max` s went by well.
"""

import msgspec

__all__ = [
    "Breaker",
    "BreakerSettings",
    "after_early_end",
    "after_failure",
    "after_start",
    "after_success",
    "may_try",
    "retry_in",
    "with_trial",
    "without_trial",
]


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Failures in a row until it opens; first and longest delay in s."""

    failures_max: int
    backoff: float
    backoff_max: float


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """`open_until` is a time in s of the caller's clock, None while closed; `trial`: one try is under way.

    `failures` are starts that failed in a row, `early_ends` those that broke in a row before they proved themselves;
    `well_since` is when, after the last of either, a start first went well.
    """

    failures: int = 0
    early_ends: int = 0
    openings: int = 0
    open_until: float | None = None
    trial: bool = False
    well_since: float | None = None

    @property
    def in_a_row(self) -> int:
        """How often in a row it failed, in whatever way."""
        return self.failures + self.early_ends


def may_try(breaker: Breaker, now: float) -> bool:
    """Tell whether a try may begin now."""
    if breaker.open_until is None:
        return True
    return now >= breaker.open_until and not breaker.trial


def with_trial(breaker: Breaker) -> Breaker:
    """Return the breaker once a permitted try has begun: half open if it was open."""
    if breaker.open_until is None:
        return breaker
    return msgspec.structs.replace(breaker, trial=True)


def without_trial(breaker: Breaker) -> Breaker:
    """Return the breaker after a try that was called off: nothing was learnt, another trial may begin."""
    return msgspec.structs.replace(breaker, trial=False) if breaker.trial else breaker


def after_start(breaker: Breaker, now: float) -> Breaker:
    """Return the closed breaker: one good start is proof enough, unless those before it broke at once."""
    if not breaker.early_ends:
        return Breaker()
    since = now if breaker.well_since is None else breaker.well_since
    return msgspec.structs.replace(breaker, failures=0, open_until=None, trial=False, well_since=since)


def after_success(_: Breaker) -> Breaker:
    """Return the closed breaker: one has proved itself, and all is forgotten."""
    return Breaker()


def after_failure(breaker: Breaker, settings: BreakerSettings, now: float, jitter: float) -> Breaker:
    """Return the breaker after a failed try; `jitter`, 0 to 1, takes up to half of the delay away.

    A try from before it opened counts, but does not lengthen the delay: many began together and fail together.
    """
    breaker = _if_in_a_row(breaker, settings, now)
    return _counted(msgspec.structs.replace(breaker, failures=breaker.failures + 1), settings, now, jitter)


def after_early_end(breaker: Breaker, settings: BreakerSettings, now: float, jitter: float) -> Breaker:
    """Return the breaker when one that had started well broke before it proved itself; see `after_failure`."""
    breaker = _if_in_a_row(breaker, settings, now)
    return _counted(msgspec.structs.replace(breaker, early_ends=breaker.early_ends + 1), settings, now, jitter)


def retry_in(breaker: Breaker, now: float) -> float:
    """Return how many s remain until a try may begin; 0 while closed or when it is due."""
    return 0.0 if breaker.open_until is None else max(0.0, breaker.open_until - now)


def _if_in_a_row(breaker: Breaker, settings: BreakerSettings, now: float) -> Breaker:
    """Forget what was before a time that went well."""
    if breaker.well_since is None:
        return breaker
    if now - breaker.well_since >= settings.backoff_max:
        return Breaker()
    return msgspec.structs.replace(breaker, well_since=None)


def _counted(breaker: Breaker, settings: BreakerSettings, now: float, jitter: float) -> Breaker:
    still_open = breaker.open_until is not None and not breaker.trial
    if still_open or breaker.in_a_row < settings.failures_max:
        return breaker
    delay = min(settings.backoff * 2.0 ** min(breaker.openings, 32), settings.backoff_max)
    return msgspec.structs.replace(
        breaker, openings=breaker.openings + 1, open_until=now + delay * (1 - jitter / 2), trial=False
    )
