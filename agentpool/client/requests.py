"""What may be asked for, as plain data that says the same to every backend: an agent, a task."""

import hashlib
import math
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypedDict

import msgspec
from msgspec.structs import replace

from agentpool.client.kinds import Kind, milliseconds
from agentpool.clock import wall_ms
from agentpool.errors import AgentFailed, AgentPoolError, AgentTerminated, InvalidInput, TaskTimedOut
from agentpool.protocol.codec import check_name, new_id
from agentpool.protocol.retrying import RetryPolicy
from agentpool.protocol.states import AgentStatus
from agentpool.protocol.tasks import NESTED_MAX, TaskEnvelope, TaskHeader

__all__ = [
    "PRIORITY",
    "AgentTaskOptions",
    "Request",
    "Spawn",
    "TaskOptions",
    "new_request",
    "new_requests",
]

PRIORITY_MAX = 9
PRIORITY = 5
URGENT = 2
"""Tasks of this priority and below go before others."""
AGE_STEP_US = 10_000_000
"""A task waits at most this much longer than one that is one priority more urgent: so none waits for ever."""

RUN_MARGIN_S = 1.0
"""A run with a timeout waits this much longer for the worker's own word that it timed out."""


class Spawn(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that is asked for. `operation` marks the request, so that a repeat or a withdrawal means only it."""

    agent_id: str
    agent_type: str
    tenant: str
    project: str
    max_idle_ms: int
    heartbeat_ms: int
    operation: str

    def ended_early(self, status: str, detail: str) -> AgentPoolError:
        """Return the error for an agent that ended, with this status and why, before it was ready."""
        error = AgentFailed if status == AgentStatus.FAILED else AgentTerminated
        return error(f"Agent {self.agent_id} has ended before it was ready: {detail or status}")


class AgentTaskOptions(TypedDict, total=False):
    """What may be said of a task for one agent, beside its input. Times are in seconds."""

    timeout: float | None
    """What its run may take."""
    key: str | None
    """The same key, of one tenant and type or agent, means the same task while that is unfinished and `key_ttl` after.
    """
    delay: float | None
    """Time until it may begin."""
    at: datetime | float | None
    """When it may begin: a time with a zone, or seconds since 1970; by this machine's clock. Not with `delay`."""
    expires: float | None
    """Time in which it must have begun; otherwise it ends as expired."""
    retry: RetryPolicy | None
    """Instead of the one of the agent's class or of the pool."""
    when_limited: Literal["queue", "reject"]
    """At a limit of its tenant: wait, or raise `AgentLimitError`."""


class TaskOptions(AgentTaskOptions, total=False):
    """What may be said of a task by type."""

    tenant: str
    project: str | None
    priority: int
    """0 (most urgent) to 9; up to 2 goes before what others wait for. Those that wait grow urgent."""
    batch: bool
    """Run only when nothing else can, for `batch_max_wait` at most."""
    requires: Iterable[str]
    """Labels that its worker must have."""
    sticky: Literal["tenant", "project"] | None
    """Prefer the worker that has last been given tasks of this tenant, or of its project, while that is there."""


class Request(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """A task that is asked for: of one pinned agent, or of any agent of a type; the other of the two is empty.

    Times are in whole ms where they say so. Tasks that are handed in together share everything but id and envelope.
    Two requests are never equal, which makes `alike` a key that costs nothing. (`gc`: there are many of them, and they
    hold nothing that could hold them.)
    """

    task_id: str
    agent_name: str
    agent_type: str
    tenant: str
    timeout: float | None
    """Seconds that its run may take; in whole milliseconds in the envelope too, for whoever runs it."""
    envelope: TaskEnvelope
    priority: int = PRIORITY
    lane: str = "normal"
    options: str = ""
    delay_ms: int = 0
    expires_ms: int = 0
    key: str = ""
    """Digest of the idempotency key."""
    input_digest: str = ""
    parent: str = ""
    sticky: str = ""
    limits: str = ""
    """`reject` or `total`: refuse at a limit, instead of waiting."""
    alike: "Request | None" = None
    """The same one for all that share everything but id, envelope and timeout; None with a key, which is a task's own.
    """

    @property
    def later_us(self) -> int:
        """Microseconds by which a task of priority 0 may come later and still be taken before this one."""
        return self.priority * AGE_STEP_US

    @property
    def is_batch(self) -> bool:
        """Tell whether it waits until nothing else can run."""
        return self.lane.startswith("batch")

    @property
    def patience(self) -> float | None:
        """Seconds that a run waits in all, or None for ever."""
        return None if self.timeout is None else self.timeout + RUN_MARGIN_S

    def header(self, reply_to: str = "") -> TaskHeader:
        """Return what is read of the task without its input."""
        return TaskHeader(
            reply_to, self.agent_name, self.agent_type, self.tenant, self.lane, self.later_us, self.options
        )

    def timed_out(self, answer: str) -> TaskTimedOut:
        """Return the error for a run that was withdrawn because its patience is over; the answer was asked (it ran),
        shared or any other.
        """
        late = f"Task {self.task_id} did not finish within {self.timeout} s"
        if answer == "shared":
            return TaskTimedOut(f"{late}. It goes on, as it was asked for again with its key.")
        where = "while it ran" if answer == "asked" else "before any agent took it"
        return TaskTimedOut(f"{late} and was cancelled {where}.")


def new_request(pool: str, kind: Kind, input: Any, *, key: str | None = None, **options: Any) -> Request:
    """Check a task for one agent (by name) or for any agent of the kind; raises `InvalidInput`. What else may be said
    is in `_model_for` and `_model`.
    """
    request = _copy(_model_for(kind, **options), pool, kind, input)
    return request if key is None else _with_keys([request], kind.name, key)[0]


def new_requests(
    pool: str, kind: Kind, inputs: Iterable[Any], *, key: str | None = None, **options: Any
) -> list[Request]:
    """Check tasks that share everything but their inputs, as `new_request` does.

    With a `key`, each of several inputs gets `<key>/<its place>`.
    """
    model = _model_for(kind, **options)
    requests = [_copy(model, pool, kind, input) for input in inputs]
    return requests if key is None else _with_keys(requests, kind.name, key)


def _copy(model: Request, pool: str, kind: Kind, input: Any) -> Request:
    envelope = replace(model.envelope, input=kind.encode(input))
    return replace(model, task_id=f"{pool}/{new_id()}", envelope=envelope)


def _model_for(
    kind: Kind,
    *,
    delay: float | None = None,
    at: datetime | float | None = None,
    requires: Iterable[str] = (),
    **shared: Any,
) -> Request:
    """Return what tasks share, from what may mean another thing each time, and what does not."""
    delay_ms = 0 if delay is None and at is None else _delay_ms(delay, at)
    words = (kind.name, delay_ms, requires if isinstance(requires, str) else tuple(requires))
    try:
        return _model(*words, **shared)
    except TypeError:
        return _model.__wrapped__(*words, **shared)  # something cannot be hashed


@lru_cache(maxsize=1024, typed=True)
def _model(
    agent_type: str,
    delay_ms: int,
    requires: Iterable[str],
    /,
    *,
    agent_name: str = "",
    parent: str = "",
    depth: int = 0,
    limits: str = "",
    tenant: str = "default",
    project: str | None = None,
    priority: int = PRIORITY,
    timeout: float | None = None,
    expires: float | None = None,
    batch: bool = False,
    retry: RetryPolicy | None = None,
    sticky: str | None = None,
    when_limited: str = "queue",
) -> Request:
    """Check what tasks share; returns one without id and input, as a model of them. It is found again by what is given,
    mostly two or three words.

    `parent` waits for the tasks, `depth` above them.
    """
    if depth > NESTED_MAX:
        raise InvalidInput(f"Tasks may wait for one another {NESTED_MAX} deep, and this one would be the next.")
    check_name("tenant", tenant)
    _check_priority(priority)
    expires_ms = milliseconds("expires", expires)
    lane = "-" if agent_name else _lane(priority, requires, batch=_check_flag("batch", batch), nested=bool(parent))
    words = {
        "parent": parent,
        "depth": str(depth) if depth else "",
        "expires": "1" if expires_ms else "",
        "batch": "1" if lane.startswith("batch") else "",
    }
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InvalidInput(f"retry is {retry!r}: it must be a RetryPolicy, or None.", "$.retry")
    envelope = TaskEnvelope(
        msgspec.Raw(b"null"),
        milliseconds("timeout", timeout),
        "" if project is None else check_name("project", project),
        retry,
    )
    alike = _alike(
        agent_name=agent_name,
        agent_type="" if agent_name else agent_type,
        tenant=tenant,
        priority=priority,
        lane=lane,
        options=",".join(f"{name}={value}" for name, value in words.items() if value),
        delay_ms=delay_ms,
        expires_ms=expires_ms,
        parent=parent,
        sticky=_sticky(sticky, tenant, project),
        limits=limits or _limits(when_limited),
    )
    return replace(alike, timeout=timeout, envelope=envelope, alike=alike)


@lru_cache(maxsize=1024)
def _alike(**shared: Any) -> Request:
    """Return what stands for all requests that share these words; what differs in the envelope alone, as by its
    project, may be handed in together.
    """
    return Request(task_id="", timeout=None, envelope=TaskEnvelope(msgspec.Raw(b"null")), **shared)


def _with_keys(requests: list[Request], type: str, key: str) -> list[Request]:
    if not isinstance(key, str) or not 1 <= len(key) <= 512:
        raise InvalidInput(f"key is {key!r}: it must be text of 1 to 512 characters.", "$.key")
    keyed = []
    for place, request in enumerate(requests):
        own = key if len(requests) == 1 else f"{key}/{place}"
        digest = _digest(request.tenant, request.agent_name or type, own)
        words = ",".join(word for word in (request.options, f"key={digest}") if word)
        input_digest = _digest(bytes(request.envelope.input))
        keyed.append(replace(request, options=words, key=digest, input_digest=input_digest, alike=None))
    return keyed


def _digest(*parts: str | bytes) -> str:
    """Return 32 hex digits that stand for the parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def _lane(priority: int, requires: Iterable[str], *, batch: bool, nested: bool) -> str:
    """Return the lane of a task by type: its level, and the labels that its worker must have."""
    labels = (requires,) if isinstance(requires, str) else requires
    if nested:
        level = "child"
    elif batch:
        level = "batch"
    else:
        level = "urgent" if priority <= URGENT else "normal"
    return "+".join([level, *sorted({check_name("label", label) for label in labels})])


def _delay_ms(delay: float | None, at: datetime | float | None) -> int:
    """Return in how many ms a task may begin, 0 for at once."""
    if delay is not None and at is not None:
        raise InvalidInput("delay and at both say when the task may begin: give one of them.", "$.at")
    if at is None:
        return 0 if delay == 0 else milliseconds("delay", delay)
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise InvalidInput(f"at is {at}, without a zone: use datetime.now(timezone.utc) or the like.", "$.at")
        at = at.timestamp()
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        raise InvalidInput(f"at is {at!r}: it must be a datetime with a zone, or seconds since 1970.", "$.at")
    return max(0, milliseconds("at", max(0.001, at - wall_ms() / 1000)))


def _sticky(sticky: str | None, tenant: str, project: str | None) -> str:
    if sticky is None:
        return ""
    if sticky not in ("tenant", "project"):
        raise InvalidInput(f'sticky is {sticky!r}: it may be "tenant", "project", or None.', "$.sticky")
    if sticky == "project" and not project:
        raise InvalidInput('sticky="project" needs a project.', "$.project")
    return f"{tenant}/{project}" if sticky == "project" else tenant


def _limits(when_limited: str) -> str:
    if when_limited not in ("queue", "reject"):
        raise InvalidInput(f'when_limited is {when_limited!r}: it may be "queue" or "reject".', "$.when_limited")
    return "reject" if when_limited == "reject" else ""


def _check_flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r}: it must be True or False.", f"$.{name}")
    return value


def _check_priority(priority: int) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= PRIORITY_MAX:
        raise InvalidInput(f"priority is {priority!r}: it must be 0 (most urgent) to {PRIORITY_MAX}.", "$.priority")
    return priority
