"""Threshold scaling: utilization above one bound asks for a worker more, below another for one fewer.

Off while `scale_up_threshold` is 1.0: then workers start only when there is no room, and idle ones leave after a time.
"""

import msgspec

__all__ = ["Load", "Thresholds", "threshold_step"]


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Utilization bounds, 0 to 1, and the least time between two steps in ms."""

    up: float
    down: float
    cooldown_ms: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a step is decided from. `total`, `used` and `capacity` (of one worker) are slots."""

    workers: int
    total: int
    used: int
    capacity: int
    since_last_ms: int


def threshold_step(load: Load, bounds: Thresholds, *, low: int, high: int) -> int:
    """Return +1, -1 or 0 workers.

    A step down is taken only if what remains can hold everything and would not at once ask for a step up again.
    """
    if bounds.up >= 1.0 or load.total == 0 or load.since_last_ms < bounds.cooldown_ms:
        return 0
    utilization = load.used / load.total
    if utilization >= bounds.up and load.workers < high:
        return 1
    remaining = load.total - load.capacity
    if utilization <= bounds.down and load.workers > low and remaining > 0 and load.used < remaining * bounds.up:
        return -1
    return 0
