"""A task before and after its outcome, and as a host takes it.

A task's string in Redis begins with one header line of plain words, which scripts read, and goes on with JSON that they
never touch::

    task <reply channel or -> <agent name or -> <agent type or -> <tenant> <lane> <later_us> <options or ->
    {"input": …, "timeout_ms": …}

Options are `name=value`, with commas between: `key` is the digest of an idempotency key, `parent` the task that waits
for this one and `depth` how many wait above it, `expires` and `batch` say that there is such a timer, `delay` that it
did not wait in its queue from the beginning, `replays` names the dead letter that this task was.

Its outcome replaces it and is JSON alone, so the first byte tells the two apart.
"""

from functools import lru_cache

import msgspec

from agentpool.protocol.codec import encode_json
from agentpool.protocol.retrying import RetryPolicy
from agentpool.protocol.states import TaskStatus

__all__ = [
    "NESTED_MAX",
    "ClaimedTask",
    "DeadLetter",
    "Outcome",
    "TaskEnvelope",
    "TaskError",
    "TaskHeader",
    "decode_claimed",
    "decode_header",
    "decode_task",
    "encode_header",
    "encode_task",
]

NESTED_MAX = 8
"""Tasks that may wait for one another, one within the other."""


class TaskHeader(msgspec.Struct, frozen=True, gc=False):
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


class TaskEnvelope(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What the client asks of the agent."""

    input: msgspec.Raw
    timeout_ms: int = 0
    project: str = ""
    retry: RetryPolicy | None = None
    """None: as the agent's class or the pool says."""


class ClaimedTask(msgspec.Struct, frozen=True, gc=False):
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


class TaskError(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What went wrong, as text."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    path: str = ""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
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


@lru_cache(maxsize=1024)
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
