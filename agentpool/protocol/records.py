"""What stands in Redis as hashes, decoded from text: workers, hosts, agents, pools."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agentpool.errors import DamagedRecord
from agentpool.protocol.states import AgentStatus, WorkerStatus

if TYPE_CHECKING:
    from agentpool.protocol.commands import Spawn

__all__ = [
    "AgentRecord",
    "Beat",
    "DesiredAgent",
    "HostRecord",
    "HostsView",
    "PoolInfo",
    "PoolStats",
    "PoolView",
    "StartOrder",
    "TypeInfo",
    "WorkerRecord",
    "WorkerView",
    "decode_hash",
    "decode_hashes",
    "plain",
]

R = TypeVar("R", bound=msgspec.Struct)


def decode_hash(record: type[R], fields: Mapping[str, str]) -> R:
    """Build `record` from a Redis hash: all values are text, empty text means the default.

    Raises `DamagedRecord` for what does not fit.
    """
    given = {key: value for key, value in fields.items() if value != ""}
    try:
        return msgspec.convert(given, record, strict=False)
    except msgspec.ValidationError as error:
        what = fields.get("agent_id") or fields.get("process_id") or fields.get("pool_name") or "without an id"
        raise DamagedRecord(f"The record of {what} cannot be read: {error}. Run: agentpool doctor") from None


def decode_hashes(record: type[R], rows: Iterable[Mapping[str, str]]) -> list[R]:
    """Build records from hashes; empty and damaged ones are left out, which doctor reports."""
    records = []
    for fields in rows:
        with suppress(DamagedRecord):
            if fields:
                records.append(decode_hash(record, fields))
    return records


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`process:<id>`. Times are Redis time in ms; memory is in bytes."""

    process_id: str
    pool_name: str
    status: WorkerStatus
    host: str = ""
    host_id: str = ""
    boot_id: str = ""
    pid_ns: str = ""
    pid: int = 0
    start_time: int = 0
    """Kernel clock ticks since boot at which the process started: with pid and boot id, its identity."""
    master: str = ""
    capacity: int = 0
    agent_count: int = 0
    task_count: int = 0
    available: int = 0
    version: int = 0
    """Grows with each change of what the worker shall hold."""
    release: str = ""
    schema: int = 0
    types_hash: str = ""
    labels: str = ""
    """What its host has that others may lack, as words."""
    ordered_at: int = 0
    started_at: int = 0
    last_beat: int = 0
    idle_since: int = 0
    loop_lag_ms: int = 0
    memory_bytes: int = 0
    cpu_percent: float = 0.0
    reason: str = ""


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`pool:<pool>:host:<master>`: a host as its master sees it. Times are Redis time in ms, memory is in MB."""

    master: str
    pool_name: str
    host: str = ""
    host_id: str = ""
    boot_id: str = ""
    pid_ns: str = ""
    pid: int = 0
    start_time: int = 0
    session: str = ""
    """Of the master's process: another one gets another."""
    labels: str = ""
    cpus: float = 0.0
    load: float = 0.0
    """Processes that want a CPU, on average over the last minute."""
    memory_mb: int = 0
    available_mb: int = 0
    min_free_mb: int = 0
    """No worker is started here while less memory is available."""
    workers: int = 0
    """Worker processes of all pools."""
    workers_max: int = 0
    """Bound of these; 0 is none."""
    closed: str = ""
    """Why no worker is started here now, or empty."""
    release: str = ""
    schema: int = 0
    types_hash: str = ""
    renew_before: int = 0
    """Workers that were ordered before this time are to be replaced."""
    upgrade: str = ""
    """How far an upgrade got, or why it was refused."""
    started_at: int = 0
    last_beat: int = 0


class StartOrder(msgspec.Struct, frozen=True):
    """A worker that is ordered or starting. `at` is when it was ordered, in Redis ms."""

    worker: str
    master: str
    at: int
    is_begun: bool = False
    """Its process is known."""


class HostsView(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts of a pool, silent ones too, and what is ordered of them, as of `now_ms`."""

    now_ms: int
    hosts: tuple[HostRecord, ...] = ()
    orders: tuple[StartOrder, ...] = ()

    def living(self, alive_ms: int) -> list[HostRecord]:
        """Return the hosts whose masters beat less than so long ago."""
        return [host for host in self.hosts if self.now_ms - host.last_beat < alive_ms]

    def uncounted(self) -> dict[str, int]:
        """Return by master how many workers were ordered since it last counted its own."""
        beats = {host.master: host.last_beat for host in self.hosts}
        late = [order.master for order in self.orders if order.at >= beats.get(order.master, 0)]
        return {master: late.count(master) for master in late}


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`agent:<pool>/<name>`. Times are Redis time in ms."""

    agent_id: str
    pool_name: str
    agent_type: str
    status: AgentStatus
    process_id: str = ""
    tenant: str = "default"
    project: str = ""
    incarnation: int = 0
    """Grows with each placement; a worker that shows an older one is refused."""
    max_idle_ms: int = 0
    heartbeat_ms: int = 0
    spawned_at: int = 0
    placed_at: int = 0
    started_at: int = 0
    last_used_at: int = 0
    last_heartbeat: int = 0
    run_count: int = 0
    failures: int = 0
    crashes: int = 0
    task_id: str = ""
    last_error: str = ""


class DesiredAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent that a worker shall hold, as the worker reads it."""

    agent_id: str
    agent_type: str
    incarnation: int
    tenant: str = "default"
    project: str = ""
    max_idle_ms: int = 0
    heartbeat_ms: int = 0
    status: AgentStatus = AgentStatus.PLACED
    waiting: int = 0
    """Tasks in its mailbox."""

    @classmethod
    def of(cls, source: "AgentRecord | Spawn") -> "DesiredAgent":
        """Return what a placed agent's record, or the command that tells of its placement, says to hold."""
        return cls(
            agent_id=source.agent_id,
            agent_type=source.agent_type,
            incarnation=source.incarnation,
            tenant=source.tenant,
            project=source.project,
            max_idle_ms=source.max_idle_ms,
            heartbeat_ms=source.heartbeat_ms,
        )


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker shall hold, as of `version`."""

    version: int
    status: WorkerStatus
    agents: tuple[DesiredAgent, ...] = ()
    cancels: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    """Ids of the tasks by type that it has."""
    runs: tuple[str, ...] = ()
    """Ids of the tasks from mailboxes that it has."""


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a heartbeat."""

    version: int
    status: WorkerStatus
    turns: int
    """Tenants whose tasks by type may be taken."""
    next_due_ms: int
    """Time until the next timer is due; -1 without one."""
    master_beat: int = 0
    """Last beat of the worker's master, in Redis ms; 0 when none is known."""


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as its leader observes it; counts of workers, agents and tasks."""

    now_ms: int
    workers: int
    """All that are not gone: ordered, starting, ready, draining."""
    starting: int
    draining: int
    ready: int
    pending: int
    due: int
    """Of the pending, those that may be placed now."""
    waiting_tasks: int
    runnable_tasks: int
    """Of the waiting, as far as they matter, those that could begin if there were room."""
    running_tasks: int
    free_slots: int
    lost: int
    delayed: int = 0
    """Tasks that may not begin yet, those included that wait to be tried again."""
    dead: int = 0
    """Dead letters."""


class TypeInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent class declares, for clients that do not have the class."""

    name: str
    module: str
    scope: str = "tenant"
    labels: tuple[str, ...] = ()
    start_timeout: float | None = None
    on_redis_loss: str = "continue"


class PoolInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`pool:<name>`: settings as applied, and what the leader wants."""

    pool_name: str
    role_type: str = ""
    min_workers: int = 0
    max_workers: int = 0
    agents_per_worker: int = 0
    placement: str = "least_loaded"
    max_input_bytes: int = 0
    max_queued: int = 0
    batch_max_wait_ms: int = 60_000
    tenant_limits: str = ""
    floor: int = 0
    desired: int = 0
    leader: str = ""
    fence: int = 0
    schema: int = 0
    schema_min: int = 0
    """Oldest schema whose releases may take part."""
    renewing: str = ""
    """1 while workers are replaced one by one, for which there may be one above `max_workers`."""
    release: str = ""
    types_hash: str = ""
    status: str = ""
    restarts: str = ""
    """Empty, or why the leader no longer starts workers."""


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """A pool in numbers. Slots count agents and tasks by type; `utilization` is used / total."""

    pool_name: str
    role_type: str = ""
    process_count: int = 0
    active_worker_processes: int = 0
    total_capacity: int = 0
    used_capacity: int = 0
    available_capacity: int = 0
    agent_count: int = 0
    pending_agents: int = 0
    queued_tasks: int = 0
    running_tasks: int = 0
    delayed_tasks: int = 0
    dead_tasks: int = 0
    utilization: float = 0.0
    starting_workers: int = 0
    draining_workers: int = 0
    min_workers: int = 0
    max_workers: int = 0
    desired_workers: int = 0
    leader: str = ""
    restarts: str = ""


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return the record as a dict of JSON types, in the order of its fields."""
    result: dict[str, Any] = msgspec.to_builtins(record)
    return result
