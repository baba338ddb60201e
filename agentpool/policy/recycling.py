"""When an agent has done enough and is replaced by a fresh one.

Each agent gets its own quota, a little lower than the pool's, so that agents that began together do not end together.
"""

import msgspec

__all__ = ["Quota", "Usage", "jittered", "next_to_recycle", "reason_to_recycle"]


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent may use up; None is no limit. Age in s, memory in MB over the baseline, CPU in % of a core."""

    requests: int | None = None
    age: float | None = None
    memory_mb: float | None = None
    cpu_percent: float | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent has used up; None is not known."""

    requests: int = 0
    age: float = 0.0
    memory_mb: float | None = None
    cpu_percent: float | None = None


def jittered(quota: Quota, part: float) -> Quota:
    """Return the quota with counts and times lowered by `part` (0 to 1); what is measured keeps its limit."""
    keep = 1.0 - part
    return msgspec.structs.replace(
        quota,
        requests=None if quota.requests is None else max(1, round(quota.requests * keep)),
        age=None if quota.age is None else quota.age * keep,
    )


def reason_to_recycle(usage: Usage, quota: Quota) -> str | None:
    """Return why an agent is due, or None."""
    if quota.requests is not None and usage.requests >= quota.requests:
        return f"{usage.requests} requests"
    if quota.age is not None and usage.age >= quota.age:
        return f"{usage.age:.0f} s old"
    if quota.memory_mb is not None and usage.memory_mb is not None and usage.memory_mb > quota.memory_mb:
        return f"{usage.memory_mb:.0f} MB over its baseline"
    if quota.cpu_percent is not None and usage.cpu_percent is not None and usage.cpu_percent > quota.cpu_percent:
        return f"{usage.cpu_percent:.0f} % of a core"
    return None


def next_to_recycle(due: list[str], under_way: int, at_once: int) -> list[str]:
    """Return who may begin now: first due, first replaced, never more than `at_once` together."""
    return due[: max(0, at_once - under_way)]
