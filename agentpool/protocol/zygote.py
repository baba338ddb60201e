"""What a master and its zygote say to each other over their socket, and how a worker's exit is read.

The socket is a Unix `SOCK_SEQPACKET` pair: one JSON message a packet. `Forked` carries the child's pidfd along, so
there is no moment in which the pid could already be another's. End of file from the master ends the zygote; its
workers live on.
"""

from enum import IntEnum

import msgspec

from agentpool.protocol.records import TypeInfo

__all__ = [
    "Exit",
    "Exited",
    "Failed",
    "Fork",
    "Forked",
    "FromMaster",
    "FromZygote",
    "Prepare",
    "Ready",
    "WorkerSettings",
    "decode_from_master",
    "decode_from_zygote",
    "encode",
]

PACKET_BYTES_MAX = 1 << 18


class Exit(IntEnum):
    """Exit statuses of a worker that mean something to its master."""

    CLEAN = 0
    NOT_REGISTERED = 10
    """Its order was gone, or Redis did not answer in time: it never took part."""
    GIVEN_UP = 11
    """It learned that it had been reaped."""
    DEAF = 12
    """An essential loop ended; a worker that beats but does nothing is the worst kind."""
    FROZEN = 13
    """It found that it had been stopped for longer than its lease."""
    BOOT_FAILED = 14
    """An exception before it was ready."""
    BLOCKED = 15
    """An agent blocked its event loop for longer than its master should have let it."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to know. Times are in seconds; fields named as in `PoolSettings` come from there."""

    pool: str
    redis_url: str
    namespace: str = ""
    install: str = ""
    host_id: str = ""
    host: str = ""
    boot_id: str = ""
    pid_ns: str = ""
    capacity: int = 10
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 10.0
    orphan_timeout: float = 0.0
    block_timeout: float = 30.0
    start_timeout: float = 30.0
    agent_start_timeout: float = 30.0
    agent_stop_timeout: float = 10.0
    task_timeout: float = 300.0
    drain_timeout: float = 30.0
    boot_failures_max: int = 5
    boot_backoff: float = 0.5
    boot_backoff_max: float = 30.0
    max_result_bytes: int = 1_048_576
    retry_attempts: int = 3
    retry_delay: float = 1.0
    retry_backoff: float = 2.0
    retry_max_delay: float = 60.0
    audit: bool = True
    audit_payload: bool = False
    batch_max_wait: float = 60.0
    labels: tuple[str, ...] = ()
    agent_idle_timeout: float = 300.0
    recycle_threshold: int = 1000
    requests_per_quota: int = 5000
    max_instance_age: float = 7200.0
    max_recycles: int = 100
    max_memory_mb: float = 1024.0
    max_cpu_percent: float = 90.0
    connect_timeout: float = 5.0
    command_timeout: float = 5.0
    log_level: str = "info"
    log_format: str = "auto"
    types_hash: str = ""
    mark_dir: str = ""
    """Folder in which a worker marks the tasks that have begun; `<worker id>.marks`."""
    stack_dir: str = ""
    """Folder in which a worker's stack dump is written; `<worker id>.stack`."""


class _FromMaster(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    pass


class Prepare(_FromMaster, frozen=True):
    """Import these agent classes and be ready to fork."""

    agents: tuple[str, ...]
    app_dir: str
    worker: WorkerSettings


class Fork(_FromMaster, frozen=True):
    """Start the worker of this order; `worker` replaces the settings of earlier messages when given."""

    worker_id: str
    secret: str
    master: str
    worker: WorkerSettings | None = None


class _FromZygote(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    pass


class Ready(_FromZygote, frozen=True):
    """Everything is imported. With `warning`, forking is unsafe and workers are exec'd."""

    types: tuple[TypeInfo, ...]
    warning: str = ""
    release: str = ""
    """Of what was imported: the master that runs may be of another one."""


class Failed(_FromZygote, frozen=True):
    """A module did not import, or a class cannot be used; the zygote exits after this."""

    message: str
    traceback: str = ""


class Forked(_FromZygote, frozen=True):
    """The worker's process exists; its pidfd comes along with the packet."""

    worker_id: str
    pid: int
    start_time: int


class Exited(_FromZygote, frozen=True):
    """The worker's process ended; `status` as of `os.waitpid`."""

    worker_id: str
    pid: int
    status: int


FromMaster = Prepare | Fork
FromZygote = Ready | Failed | Forked | Exited

_from_master: msgspec.json.Decoder[FromMaster] = msgspec.json.Decoder(FromMaster)
_from_zygote: msgspec.json.Decoder[FromZygote] = msgspec.json.Decoder(FromZygote)

encode = msgspec.json.encode
decode_from_master = _from_master.decode
decode_from_zygote = _from_zygote.decode
