"""When something that failed is tried again: later each time, and after a number of failures not at all."""

__all__ = ["next_restart"]


def next_restart(
    failures: int, *, backoff: float, backoff_max: float, failures_max: int, jitter: float
) -> float | None:
    """Return the delay in s after this many failures in a row (from 1), or None when it is given up.

    The delay doubles from `backoff` up to `backoff_max`; `jitter`, a random number from 0 to 1, takes up to half of
    it away, so that what failed together does not come back together.
    """
    if failures >= failures_max:
        return None
    doubled = backoff * 2.0 ** min(failures - 1, 32)
    return min(doubled, backoff_max) * (1 - jitter / 2)
