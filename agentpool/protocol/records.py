"""What stands in Redis, as structs: hashes decoded from text, and a task before and after its outcome.

A task's string begins with one header line of plain words, which scripts read, and goes on with JSON that they never
touch::

    task <reply channel or -> <agent name or -> <agent type or -> <tenant>
    {"input": …, "timeout_ms": …}

Its outcome replaces it and is JSON alone, so the first byte tells the two apart.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agentpool.errors import DamagedRecord
from agentpool.protocol.states import AgentStatus, TaskStatus, WorkerStatus

if TYPE_CHECKING:
    from agentpool.protocol.commands import Spawn

__all__ = [
    "AgentRecord",
    "Beat",
    "ClaimedTask",
    "DesiredAgent",
    "Outcome",
    "PoolInfo",
    "PoolStats",
    "PoolView",
    "TaskEnvelope",
    "TaskError",
    "TaskHeader",
    "TypeInfo",
    "WorkerRecord",
    "WorkerView",
    "decode_hash",
    "decode_hashes",
    "decode_header",
    "decode_task",
    "encode_task",
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
    types_hash: str = ""
    ordered_at: int = 0
    started_at: int = 0
    last_beat: int = 0
    idle_since: int = 0
    loop_lag_ms: int = 0
    memory_bytes: int = 0
    cpu_percent: float = 0.0
    reason: str = ""


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


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a heartbeat."""

    version: int
    status: WorkerStatus
    lanes: int
    """Lanes that hold waiting tasks."""


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
    running_tasks: int
    free_slots: int
    lost: int


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
    floor: int = 0
    desired: int = 0
    leader: str = ""
    fence: int = 0
    schema: int = 0
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


class TaskEnvelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client asks of the agent."""

    input: msgspec.Raw
    timeout_ms: int = 0
    project: str = ""


class ClaimedTask(msgspec.Struct, frozen=True):
    """A task that a host shall carry out."""

    id: str
    header: TaskHeader
    envelope: TaskEnvelope | None
    """None when it cannot be read: it must come to an outcome all the same."""


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


_envelope_decoder = msgspec.json.Decoder(TaskEnvelope)
_outcome_decoder = msgspec.json.Decoder(Outcome)


def encode_task(header: TaskHeader, envelope: TaskEnvelope) -> bytes:
    """Return the string under `task:<id>` before there is an outcome."""
    words = f"task {header.reply_to or '-'} {header.agent_name or '-'} {header.agent_type or '-'} {header.tenant}\n"
    return words.encode() + msgspec.json.encode(envelope)


def decode_task(raw: bytes | str) -> tuple[TaskHeader, TaskEnvelope] | Outcome:
    """Read what stands under `task:<id>`: the task as submitted, or its outcome."""
    raw = raw.encode() if isinstance(raw, str) else raw
    if raw.startswith(b"{"):
        return _outcome_decoder.decode(raw)
    words, _, body = raw.partition(b"\n")
    return decode_header(words.decode()), _envelope_decoder.decode(body)


def decode_header(record: str) -> TaskHeader:
    """Read the plain words that a task begins with; scripts have checked that they are there."""
    words = record.partition("\n")[0].split(" ")[1:]
    return TaskHeader(*("" if word == "-" else word for word in words))


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return the record as a dict of JSON types, in the order of its fields."""
    result: dict[str, Any] = msgspec.to_builtins(record)
    return result
