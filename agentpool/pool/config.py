"""What a pool is told: sizes, waits, quotas. Checked as a whole when it is made."""

import math
from typing import Any

import msgspec

from agentpool.errors import ConfigError, nearest
from agentpool.policy.recycling import JITTER_MAX, JITTER_MIN

__all__ = ["PoolConfig"]


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one pool. Times are in seconds; None switches a limit off."""

    min_size: int = 1
    """Agents kept ready (idle or starting), as far as `max_size` allows."""
    max_size: int = 10
    max_waiting: int = 1000
    """Requests that may wait in line; the next is refused with `PoolAtCapacity`."""
    acquire_timeout: float | None = None
    """How long `acquire()` waits when it is not told."""
    warm_wait: float = 0.0
    """How long a request waits for a released agent before one is made for it."""

    idle_timeout: float = 300.0
    """Idle agents above `min_size` end after this time."""
    maintenance_interval: float = 30.0

    recycle_threshold: int | None = 1000
    """Requests after which an agent is recycled."""
    requests_per_quota: int | None = 5000
    """A second bound on requests, part of the quota; the lower one counts."""
    max_instance_age: float | None = 7200.0
    max_recycles: int | None = 100
    """Recycles after which an agent is replaced by one with a new id and no inherited state."""
    max_memory_mb: float | None = 1024.0
    """Growth of an agent over its baseline, in MB."""
    max_cpu_percent: float | None = 90.0
    """Share of one core that an agent may use in the event loop between two looks."""
    recycle_jitter: float = 0.25
    """Each agent's quota is lower by a random part of 0.10 to this; at most 0.25; 0 switches it off."""
    recycles_at_once: int = 2

    start_timeout: float = 30.0
    """Unless the class says otherwise."""
    stop_timeout: float = 5.0
    health_timeout: float = 1.0
    run_timeout: float | None = None
    cancel_grace: float = 5.0
    """How long a cancelled call may take to end before it is given up."""
    drain_timeout: float = 30.0
    """How long `close()` waits for agents in use."""

    breaker_failures: int = 3
    """Failed starts in a row after which no more are tried for a while; agents that break at once count, too."""
    breaker_backoff: float = 0.5
    breaker_backoff_max: float = 30.0

    def __post_init__(self) -> None:
        if problems := _problems_of(self):
            raise ConfigError(*problems)

    @classmethod
    def development(cls, **changes: Any) -> "PoolConfig":
        """Return a small pool that recycles early."""
        return cls._preset(changes, min_size=1, max_size=3, idle_timeout=30.0, recycle_threshold=100,
                           maintenance_interval=5.0)  # fmt: skip

    @classmethod
    def production(cls, **changes: Any) -> "PoolConfig":
        """Return a pool for steady work."""
        return cls._preset(changes, min_size=4, max_size=10, idle_timeout=300.0, recycle_threshold=1000,
                           maintenance_interval=30.0, max_memory_mb=1024.0, max_cpu_percent=90.0,
                           max_instance_age=7200.0, max_recycles=100, requests_per_quota=5000)  # fmt: skip

    @classmethod
    def high_load(cls, **changes: Any) -> "PoolConfig":
        """Return a pool that is nearly always full."""
        return cls._preset(changes, min_size=8, max_size=10, idle_timeout=120.0, recycle_threshold=5000,
                           maintenance_interval=10.0, max_memory_mb=2048.0, max_cpu_percent=95.0,
                           max_instance_age=3600.0, max_recycles=200, requests_per_quota=10_000)  # fmt: skip

    @classmethod
    def _preset(cls, changes: dict[str, Any], **values: Any) -> "PoolConfig":
        known = cls.__struct_fields__
        if unknown := [name for name in changes if name not in known]:
            raise ConfigError(*(f'PoolConfig has no "{name}".{nearest(name, known)}' for name in unknown))
        return cls(**{**values, **changes})


LEAST: dict[str, int] = {
    "min_size": 0,
    "max_size": 1,
    "max_waiting": 0,
    "recycle_threshold": 1,
    "requests_per_quota": 1,
    "max_recycles": 0,
    "recycles_at_once": 1,
    "breaker_failures": 1,
}
"""Whole numbers, with the least that each may be."""

POSITIVE = frozenset(
    {"idle_timeout", "maintenance_interval", "max_instance_age", "max_memory_mb", "max_cpu_percent", "start_timeout",
     "stop_timeout", "health_timeout", "run_timeout", "cancel_grace", "breaker_backoff", "breaker_backoff_max"}
)  # fmt: skip
OPTIONAL = frozenset(
    {"acquire_timeout", "recycle_threshold", "requests_per_quota", "max_instance_age", "max_recycles",
     "max_memory_mb", "max_cpu_percent", "run_timeout"}
)  # fmt: skip


def _problems_of(config: PoolConfig) -> list[str]:
    problems = [
        problem
        for name in config.__struct_fields__
        if (problem := _problem_of(name, getattr(config, name)))
    ]  # fmt: skip
    if problems:
        return problems
    if config.min_size > config.max_size:
        problems.append(f"min_size ({config.min_size}) is above max_size ({config.max_size}): lower it or raise that")
    if config.breaker_backoff > config.breaker_backoff_max:
        problems.append("breaker_backoff is above breaker_backoff_max: the first delay cannot be the longest")
    if config.recycle_jitter and not JITTER_MIN <= config.recycle_jitter <= JITTER_MAX:
        problems.append(
            f"recycle_jitter is {config.recycle_jitter!r}: 0, or {JITTER_MIN:.2f} to {JITTER_MAX:.2f}, is possible"
        )
    return problems


def _problem_of(name: str, value: Any) -> str | None:
    if value is None:
        return None if name in OPTIONAL else f"{name} is None: it needs a number"
    if name in LEAST:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (
            None if whole and value >= LEAST[name] else f"{name} is {value!r}: a whole number ≥ {LEAST[name]} is needed"
        )
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return f"{name} is {value!r}: a number is needed"
    if value < 0 or (value == 0 and name in POSITIVE):
        return f"{name} is {value!r}: it must be {'above' if name in POSITIVE else 'at least'} 0"
    return None
