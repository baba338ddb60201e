"""When an agent has done enough and is replaced by a fresh one.

Each agent gets its own quota, a little lower than the pool's, so that agents that began together do not end together.
"""

from typing import TypeVar

import msgspec

__all__ = [
    "JITTER_MAX",
    "JITTER_MIN",
    "Quota",
    "jitter_part",
    "jittered",
    "next_to_recycle",
    "reason_to_recycle",
]

T = TypeVar("T")


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent may use up; None is no limit. Age in s, memory in MB over the baseline, CPU in % of a core."""

    requests: int | None = None
    age: float | None = None
    memory_mb: float | None = None
    cpu_percent: float | None = None


JITTER_MIN, JITTER_MAX = 0.10, 0.25


def jitter_part(most: float, chance: float) -> float:
    """Return the part of a quota to take off: 0.10 to `most` as `chance` goes from 0 to 1; 0 when `most` is 0."""
    return JITTER_MIN + (most - JITTER_MIN) * chance if most else 0.0


def jittered(quota: Quota, part: float) -> Quota:
    """Return the quota with every limit lowered by `part` (0 to 1)."""
    keep = 1.0 - part
    return Quota(
        requests=None if quota.requests is None else max(1, round(quota.requests * keep)),
        age=None if quota.age is None else quota.age * keep,
        memory_mb=None if quota.memory_mb is None else quota.memory_mb * keep,
        cpu_percent=None if quota.cpu_percent is None else quota.cpu_percent * keep,
    )


def reason_to_recycle(
    quota: Quota, requests: int, age: float, memory_mb: float | None = None, cpu_percent: float | None = None
) -> str | None:
    """Return why an agent that has used up so much is due, or None; None for memory or CPU is not known."""
    if quota.requests is not None and requests >= quota.requests:
        return f"{requests} requests"
    if quota.age is not None and age >= quota.age:
        return f"{age:.0f} s old"
    if memory_mb is not None and quota.memory_mb is not None and memory_mb > quota.memory_mb:
        return f"{memory_mb:.0f} MB over its baseline"
    if cpu_percent is not None and quota.cpu_percent is not None and cpu_percent > quota.cpu_percent:
        return f"{cpu_percent:.0f} % of a core"
    return None


def next_to_recycle(due: list[T], under_way: int, at_once: int) -> list[T]:
    """Return who may begin now: first due, first replaced, never more than `at_once` together."""
    return due[: max(0, at_once - under_way)]
