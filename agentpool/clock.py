"""Clocks that differ in what they count.

Decisions about leases and heartbeats use Redis time, inside the scripts. The clocks here are for waiting and for
noticing that this very process was stopped.
"""

import time

__all__ = ["boottime", "monotonic", "wall_ms"]

monotonic = time.monotonic


def boottime() -> float:
    """Seconds since boot, sleep included: the clock that shows that this process was frozen or suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def wall_ms() -> int:
    """Local wall-clock time in milliseconds, for people to read; never compared with Redis time."""
    return time.time_ns() // 1_000_000
