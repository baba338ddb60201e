"""What settings must obey. Pure: reads no file, no environment, and imports no agent.

Rules about one value come first. Rules about several are left out where one of their values is wrong already, so that
one mistake makes one line.
"""

import math
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass

import msgspec

from agentpool.config.settings import NAME_PATTERN, PoolSettings, RedisSettings, Settings, TenantOverrides
from agentpool.config.urls import url_problem
from agentpool.errors import nearest

__all__ = ["Finding", "KeyPath", "check", "check_redis", "quoted", "show", "unknown_hint"]

KeyPath = tuple[str, ...]
"""Where a setting stands: `("pools", "developer_pool", "min_workers")`."""

COUNTS_MIN = {
    "min_workers": 0,
    "max_workers": 1,
    "agents_per_worker": 1,
    "max_starting": 1,
    "boot_failures_max": 1,
    "max_input_bytes": 1,
    "max_result_bytes": 1,
    "max_pending": 0,
    "max_queued": 1,
    "max_queued_pool": 0,
    "max_dead": 0,
    "retry_attempts": 1,
    "audit_files": 1,
    "tenant_agents": 0,
    "tenant_running": 0,
    "tenant_tokens_per_minute": 0,
    "tenant_tokens_per_task": 0,
    "tenant_requests_per_minute": 0,
    "recycle_threshold": 0,
    "requests_per_quota": 0,
    "max_recycles": 0,
}
"""Least value of each whole number of a pool."""

MAY_BE_ZERO = frozenset(
    {
        "scale_cooldown",
        "worker_idle_timeout",
        "drain_timeout",
        "boot_backoff",
        "max_instance_age",
        "key_ttl",
        "retry_delay",
        "orphan_timeout",
    }
)
"""Times for which zero means "at once", or no limit; every other time must be above zero."""
SECONDS_MAX = 1e9
"""Some thirty years: what is meant as "never" and can still be counted in ms."""
COUNT_MAX = 10**15

THRESHOLDS = ("scale_up_threshold", "scale_down_threshold")
QUOTAS = {"max_memory_mb": "MB", "max_cpu_percent": "percent of a core"}
"""Quantities that are no times, with their units; 0 is no limit."""
FACTORS = ("retry_backoff",)
SIZES = ("audit_file_mb",)
TIMES = tuple(
    field.name
    for field in msgspec.structs.fields(PoolSettings)
    if field.type is float and field.name not in (*THRESHOLDS, *QUOTAS, *FACTORS, *SIZES)
)
WEIGHTS = (0.001, 1000)
NAME_RULE = "must be 1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or digit"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: where, what and what to do; `also` are the other settings that it compares with."""

    path: KeyPath
    message: str
    also: tuple[KeyPath, ...] = ()
    is_warning: bool = False


def check(settings: Settings, broken: Set[KeyPath] = frozenset()) -> list[Finding]:
    """Return everything wrong with the settings; rules that touch a path in `broken` are left out."""
    single = [finding for finding in _single(settings) if finding.path not in broken]
    known_bad = broken | {finding.path for finding in single}
    joint = [finding for finding in _joint(settings) if known_bad.isdisjoint((finding.path, *finding.also))]
    return single + joint


def check_redis(redis: RedisSettings) -> Iterator[Finding]:
    """Yield what is wrong with single values of the `[redis]` table."""
    if redis.url is not None and (problem := url_problem(redis.url)):
        yield Finding(("redis", "url"), problem)
    if not 0 <= redis.port <= 65535:
        yield Finding(("redis", "port"), f"must be from 1 to 65535, or 0 for no TCP; it is {redis.port}")
    if redis.namespace and not re.fullmatch(NAME_PATTERN, redis.namespace):
        yield Finding(("redis", "namespace"), f"{NAME_RULE}; it is {show(redis.namespace)}")
    for name in ("connect_timeout", "command_timeout"):
        yield from _check_time(("redis", name), getattr(redis, name))


def show(value: object) -> str:
    """Return a value as TOML would spell it, on one line and shortened; only the kind of a list or table."""
    match value:
        case str():
            # A key or value may hold line breaks, and every problem is one line.
            return quoted(value if len(value) <= 60 else value[:60] + "…")
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)[:60]
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def quoted(text: str) -> str:
    """Return text in double quotes, with what cannot be printed escaped."""
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def _single(settings: Settings) -> Iterator[Finding]:
    if settings.host_id and not re.fullmatch(NAME_PATTERN, settings.host_id):
        yield Finding(("host_id",), f"{NAME_RULE}; it is {show(settings.host_id)}")
    yield from _check_time(("leader_lease",), settings.leader_lease)
    for name in ("max_host_workers", "min_free_memory_mb"):
        yield from _check_count((name,), getattr(settings, name), 0)
    for label in settings.labels:
        if not re.fullmatch(NAME_PATTERN, label):
            yield Finding(("labels",), f"a label {NAME_RULE}; one is {show(label)}")
    yield from check_redis(settings.redis)
    for name, pool in settings.pools.items():
        yield from _check_pool_values(("pools", name), pool)


def _check_pool_values(path: KeyPath, pool: PoolSettings) -> Iterator[Finding]:
    if not re.fullmatch(NAME_PATTERN, path[-1]):
        yield Finding(path, f"a pool's name {NAME_RULE}")
    for name, least in COUNTS_MIN.items():
        yield from _check_count((*path, name), getattr(pool, name), least)
    for name in TIMES:
        yield from _check_time((*path, name), getattr(pool, name), may_be_zero=name in MAY_BE_ZERO)
    for name in THRESHOLDS:
        share = getattr(pool, name)
        if not 0 < share <= 1:
            yield Finding((*path, name), f"must be above 0 and at most 1 (1.0 is 100 %); it is {show(share)}")
    for name, unit in QUOTAS.items():
        if not (math.isfinite(quota := getattr(pool, name)) and quota >= 0):
            yield Finding((*path, name), f"must be a number of {unit}, or 0 for no limit; it is {show(quota)}")
    for name in FACTORS:
        if not 1 <= (factor := getattr(pool, name)) <= SECONDS_MAX:
            yield Finding((*path, name), f"must be a factor of 1 or more; it is {show(factor)}")
    for name in SIZES:
        if not (math.isfinite(size := getattr(pool, name)) and size > 0):
            yield Finding((*path, name), f"must be a number of MB above 0; it is {show(size)}")
    for tenant, own in pool.tenants.items():
        yield from _check_tenant((*path, "tenants", tenant), own)
    yield from _check_agents((*path, "agents"), pool.agents)


def _check_tenant(path: KeyPath, own: TenantOverrides) -> Iterator[Finding]:
    if not re.fullmatch(NAME_PATTERN, path[-1]):
        yield Finding(path, f"a tenant's name {NAME_RULE}")
    least, most = WEIGHTS
    for name in own.__struct_fields__:
        value = getattr(own, name)
        if value is None:
            continue
        if name != "weight":
            yield from _check_count((*path, name), value, 0)
        elif not least <= value <= most:
            yield Finding((*path, name), f"must be from {least} to {most}; it is {show(value)}")


def _check_count(path: KeyPath, count: int, least: int) -> Iterator[Finding]:
    if count < least:
        yield Finding(path, f"must be at least {least}; it is {show(count)}")
    elif count > COUNT_MAX:
        yield Finding(path, f"must be at most {COUNT_MAX}; it is {show(count)}")


def _check_time(path: KeyPath, seconds: float, *, may_be_zero: bool = False) -> Iterator[Finding]:
    if 0 < seconds <= SECONDS_MAX or (may_be_zero and seconds == 0):
        return
    least = "0 or more" if may_be_zero else "above 0"
    most = f", at most {SECONDS_MAX:.0f}" if seconds > SECONDS_MAX else ""
    yield Finding(path, f"must be a number of seconds {least}{most}; it is {show(seconds)}")


def _check_agents(path: KeyPath, specs: tuple[str, ...]) -> Iterator[Finding]:
    if not specs:
        yield Finding(path, 'names no agent class; write at least one, as agents = ["myapp.agents:Reviewer"]')
    holders: dict[str, str] = {}
    for spec in specs:
        module, colon, name = spec.partition(":")
        if not colon or not all(word.isidentifier() for word in (*module.split("."), name)):
            yield Finding(path, f"{show(spec)} is no agent class; write module:Class, as myapp.agents:Reviewer")
        elif name in holders:
            yield Finding(
                path, f"{show(spec)} and {show(holders[name])} have one class name; remove or rename one of them"
            )
        else:
            holders[name] = spec


def _joint(settings: Settings) -> Iterator[Finding]:
    for name, pool in settings.pools.items():
        yield from _compare_pool_values(("pools", name), pool)
    yield from _warn_of_unused(settings.redis)


def _compare_pool_values(path: KeyPath, pool: PoolSettings) -> Iterator[Finding]:
    if pool.min_workers > pool.max_workers:
        yield Finding(
            (*path, "min_workers"),
            f"{pool.min_workers} is above max_workers ({pool.max_workers}); lower it or raise max_workers",
            ((*path, "max_workers"),),
        )
    if pool.scale_down_threshold >= pool.scale_up_threshold:
        yield Finding(
            (*path, "scale_down_threshold"),
            f"{pool.scale_down_threshold} is not below scale_up_threshold ({pool.scale_up_threshold}); "
            "the pool would grow and shrink in turns",
            ((*path, "scale_up_threshold"),),
        )
    if pool.boot_backoff > pool.boot_backoff_max:
        yield Finding(
            (*path, "boot_backoff"),
            f"{pool.boot_backoff:g} s is above boot_backoff_max ({pool.boot_backoff_max:g} s); lower it",
            ((*path, "boot_backoff_max"),),
        )
    if pool.retry_delay > pool.retry_max_delay:
        yield Finding(
            (*path, "retry_delay"),
            f"{pool.retry_delay:g} s is above retry_max_delay ({pool.retry_max_delay:g} s); lower it",
            ((*path, "retry_max_delay"),),
        )
    if pool.audit_payload and not pool.audit:
        yield Finding(
            (*path, "audit_payload"),
            "has no effect while audit is false; remove one of them",
            ((*path, "audit"),),
            is_warning=True,
        )
    yield from _compare_heartbeats(path, pool)


def _compare_heartbeats(path: KeyPath, pool: PoolSettings) -> Iterator[Finding]:
    beats = pool.heartbeat_timeout / pool.heartbeat_interval if pool.heartbeat_interval else math.inf
    if beats >= 3:
        return
    is_warning = beats >= 2
    effect = "one late beat may count" if is_warning else "a worker in good health counts"
    yield Finding(
        (*path, "heartbeat_timeout"),
        f"{pool.heartbeat_timeout:g} s is under {3 if is_warning else 2} x heartbeat_interval "
        f"({pool.heartbeat_interval:g} s): {effect} as a death; set {3 * pool.heartbeat_interval:g} s or more",
        ((*path, "heartbeat_interval"),),
        is_warning,
    )


def _warn_of_unused(redis: RedisSettings) -> Iterator[Finding]:
    defaults = RedisSettings()
    for name in ("binary", "port", "appendfsync") if redis.url else ():
        if getattr(redis, name) != getattr(defaults, name):
            yield Finding(
                ("redis", name),
                "has no effect: it is for the embedded server, and redis.url names another; remove one of them",
                (("redis", "url"),),
                is_warning=True,
            )


def unknown_hint(word: str, known: tuple[str, ...]) -> str:
    """Return ` Did you mean "x"?`, or the list of what is known when nothing is near."""
    return nearest(word, known) or f" Known: {', '.join(known)}."
