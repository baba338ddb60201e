"""Whether something that keeps failing is tried again: closed, open until a time, then one trial.

Closed: everything may be tried. After `failures_max` failures in a row it opens, for a time that doubles with each
failed trial. When the time is over one trial may begin; what comes of it closes or opens it again.
"""

import msgspec

__all__ = ["Breaker", "BreakerSettings", "after_failure", "after_success", "may_try", "retry_in", "with_trial"]


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Failures in a row until it opens; first and longest delay in s."""

    failures_max: int
    backoff: float
    backoff_max: float


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """`open_until` is a time in s of the caller's clock, None while closed; `trial`: one try is under way."""

    failures: int = 0
    openings: int = 0
    open_until: float | None = None
    trial: bool = False


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


def after_success(_: Breaker) -> Breaker:
    """Return the closed breaker: one success is proof enough."""
    return Breaker()


def after_failure(breaker: Breaker, settings: BreakerSettings, now: float, jitter: float) -> Breaker:
    """Return the breaker after a failed try; `jitter`, 0 to 1, takes up to half of the delay away.

    A try from before it opened counts, but does not lengthen the delay: many began together and fail together.
    """
    failures = breaker.failures + 1
    still_open = breaker.open_until is not None and not breaker.trial
    if still_open or failures < settings.failures_max:
        return msgspec.structs.replace(breaker, failures=failures)
    delay = min(settings.backoff * 2.0 ** min(breaker.openings, 32), settings.backoff_max)
    return Breaker(
        failures=failures, openings=breaker.openings + 1, open_until=now + delay * (1 - jitter / 2), trial=False
    )


def retry_in(breaker: Breaker, now: float) -> float:
    """Return how many s remain until a try may begin; 0 while closed or when it is due."""
    return 0.0 if breaker.open_until is None else max(0.0, breaker.open_until - now)
