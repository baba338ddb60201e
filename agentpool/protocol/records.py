"""What stands in Redis, as structs: hashes decoded from text, and a task before and after its outcome.

A task's string begins with one header line of plain words, which scripts read, and goes on with JSON that they never
touch::

    task <reply channel or -> <agent name or -> <agent type or -> <tenant> <lane> <later_us> <options or ->
    {"input": …, "timeout_ms": …}

Options are `name=value`, with commas between: `key` is the digest of an idempotency key, `parent` the task that waits
for this one and `depth` how many wait above it, `expires` and `batch` say that there is such a timer, `delay` that it
did not wait in its queue from the beginning, `replays` names the dead letter that this task was.

Its outcome replaces it and is JSON alone, so the first byte tells the two apart.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agentpool.errors import DamagedRecord
from agentpool.protocol.codec import encode_json
from agentpool.protocol.retrying import RetryPolicy
from agentpool.protocol.states import AgentStatus, TaskStatus, WorkerStatus

if TYPE_CHECKING:
    from agentpool.protocol.commands import Spawn

__all__ = [
    "NESTED_MAX",
    "AgentRecord",
    "Beat",
    "ClaimedTask",
    "DeadLetter",
    "DesiredAgent",
    "HostRecord",
    "HostsView",
    "Outcome",
    "PoolInfo",
    "PoolStats",
    "PoolView",
    "StartOrder",
    "TaskEnvelope",
    "TaskError",
    "TaskHeader",
    "TypeInfo",
    "WorkerRecord",
    "WorkerView",
    "decode_claimed",
    "decode_hash",
    "decode_hashes",
    "decode_header",
    "decode_task",
    "encode_header",
    "encode_task",
    "plain",
]

R = TypeVar("R", bound=msgspec.Struct)

NESTED_MAX = 8
"""Tasks that may wait for one another, one within the other."""


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


class TaskHeader(msgspec.Struct, frozen=True):
    """The plain words that a task begins with."""

    reply_to: str
    agent_name: str
    agent_type: str
    tenant: str
    lane: str = "normal"
    """`urgent`, `normal`, `batch` or `child`, and after `+` each label that its worker must have."""
    later_us: int = 0
    """Added to the time by which the task has its turn among its tenant's."""
    options: str = ""
    """`name=value`, with commas between."""

    def option(self, name: str) -> str:
        """Return the value of an option, or ''."""
        return next((word[len(name) + 1 :] for word in self.options.split(",") if word.startswith(f"{name}=")), "")


class TaskEnvelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client asks of the agent."""

    input: msgspec.Raw
    timeout_ms: int = 0
    project: str = ""
    retry: RetryPolicy | None = None
    """None: as the agent's class or the pool says."""


class ClaimedTask(msgspec.Struct, frozen=True):
    """A task that a host shall carry out."""

    id: str
    header: TaskHeader
    envelope: TaskEnvelope | None
    """None when it cannot be read: it must come to an outcome all the same."""
    attempt: int = 1
    starts: int = 0
    """How often it was given back because no agent could be started for it."""
    tokens_max: int = 0
    """Tokens that it may use; 0: no limit."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is not tried again. Times are Redis time in ms."""

    task_id: str
    kind: str
    """`failed`: its attempts are used up, or its agent cannot be started; `poison`: workers died of it."""
    tenant: str
    agent_type: str = ""
    agent_name: str = ""
    died_at: int = 0
    attempts: int = 0
    crashes: int = 0
    starts: int = 0
    """How often its agent could not be started; that is no attempt."""
    outcome: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    errors: dict[str, msgspec.Raw] = {}
    """By the number of the attempt, or `start <n>`, or `crash <n>`: worker, time and error."""


class TaskError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, as text."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    path: str = ""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a task ended. `duration_ms` is the time the agent's `run()` took."""

    status: TaskStatus
    process_id: str = ""
    agent_id: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: TaskError | None = None
    duration_ms: float = 0.0
    tokens: int = 0
    attempts: int = 1
    """Attempts that began; 0 when its `run()` was never called."""


_envelope_decoder = msgspec.json.Decoder(TaskEnvelope)
_outcome_decoder = msgspec.json.Decoder(Outcome)


def encode_task(header: TaskHeader, envelope: TaskEnvelope) -> bytes:
    """Return the string under `task:<id>` before there is an outcome."""
    return encode_header(header) + encode_json(envelope)


def encode_header(header: TaskHeader) -> bytes:
    """Return the line that a task begins with."""
    who = f"{header.reply_to or '-'} {header.agent_name or '-'} {header.agent_type or '-'} {header.tenant}"
    return f"task {who} {header.lane} {header.later_us} {header.options or '-'}\n".encode()


def decode_task(raw: bytes | str) -> tuple[TaskHeader, TaskEnvelope] | Outcome:
    """Read what stands under `task:<id>`: the task as submitted, or its outcome."""
    raw = raw.encode() if isinstance(raw, str) else raw
    if raw.startswith(b"{"):
        return _outcome_decoder.decode(raw)
    words, _, body = raw.partition(b"\n")
    return decode_header(words.decode()), _envelope_decoder.decode(body)


@lru_cache(maxsize=1024)
def _header_of(line: str) -> TaskHeader:
    words = ["" if word == "-" else word for word in line.split(" ")[1:]]
    words += [""] * (7 - len(words))
    reply_to, agent_name, agent_type, tenant, lane, later_us, options = words[:7]
    later = int(later_us) if later_us.isdigit() else 0
    return TaskHeader(reply_to, agent_name, agent_type, tenant, lane or "-", later, options)


def decode_header(record: str) -> TaskHeader:
    """Read the plain words that a task begins with; scripts have checked that they are there."""
    return _header_of(record.partition("\n")[0])


def decode_claimed(id: str, record: str, attempt: int = 1, starts: int = 0, tokens_max: int = 0) -> ClaimedTask:
    """Read a task that was claimed; one whose JSON cannot be read has no envelope."""
    line, _, body = record.partition("\n")
    try:
        envelope = _envelope_decoder.decode(body)
    except (msgspec.DecodeError, ValueError):
        envelope = None
    return ClaimedTask(id, _header_of(line), envelope, attempt, starts, tokens_max)


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return the record as a dict of JSON types, in the order of its fields."""
    result: dict[str, Any] = msgspec.to_builtins(record)
    return result
