"""Every error a user may see, in one small tree.

Each class carries its data as attributes, says in its message what to do next, and has a stable `code`: the command
line prints it with `--json`, and a border (HTTP, say) maps classes to statuses in one table.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import ClassVar

__all__ = [
    "AgentFailed",
    "AgentLimitError",
    "AgentPoolError",
    "AgentTerminated",
    "ConfigError",
    "DamagedRecord",
    "DuplicateAgent",
    "IdempotencyConflict",
    "InputTooLarge",
    "InvalidInput",
    "NoCapacity",
    "PoolAtCapacity",
    "PoolClosed",
    "QueueFull",
    "RedisUnavailable",
    "ServerError",
    "TaskCancelled",
    "TaskFailed",
    "TaskTimedOut",
    "UnknownAgent",
    "UnknownAgentType",
    "UnknownPool",
    "UnknownTask",
    "UnknownWorker",
    "Unplaceable",
    "UnsupportedPlatform",
    "WorkerLost",
    "WorkersNeeded",
    "nearest",
]


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a hint like ` Did you mean "x"?`, or the empty string when nothing known is close."""
    match = get_close_matches(word, known, n=1, cutoff=0.6)
    return f' Did you mean "{match[0]}"?' if match else ""


class AgentPoolError(Exception):
    """The root of all errors that agentpool raises on purpose."""

    code = "ERROR"


class ConfigError(AgentPoolError):
    """The configuration cannot be used; `problems` lists every fault found, not only the first."""

    code = "CONFIG"

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class UnsupportedPlatform(AgentPoolError):
    """The daemon needs something that this operating system lacks."""

    code = "UNSUPPORTED_PLATFORM"


class ServerError(AgentPoolError):
    """The embedded Redis server could not be started, adopted or stopped."""

    code = "EMBEDDED_SERVER"


class RedisUnavailable(AgentPoolError):
    """Redis did not answer, refused the login, or cannot take writes now."""

    code = "REDIS_UNAVAILABLE"


class DamagedRecord(AgentPoolError):
    """Something in Redis cannot be read: another program wrote there, or data was lost."""

    code = "DAMAGED_RECORD"


class _Unknown(AgentPoolError):
    """Something was named that does not exist; `known` is what does."""

    kind = "thing"

    def __init__(self, name: str, known: Sequence[str] = (), hint: str = "") -> None:
        self.name = name
        self.known = tuple(known)
        listed = f" Known: {', '.join(sorted(known)[:10])}." if known else ""
        super().__init__(f'No {self.kind} named "{name}".{nearest(name, known)}{listed}{hint}')


class UnknownPool(_Unknown):
    """No such pool is registered in this Redis."""

    code = "UNKNOWN_POOL"
    kind = "pool"


class UnknownAgentType(_Unknown):
    """The pool does not run agents of this type."""

    code = "UNKNOWN_AGENT_TYPE"
    kind = "agent type"


class UnknownAgent(_Unknown):
    """No agent with this id is alive."""

    code = "UNKNOWN_AGENT"
    kind = "live agent"


class UnknownWorker(_Unknown):
    """No worker with this id is registered."""

    code = "UNKNOWN_WORKER"
    kind = "worker"


class UnknownTask(_Unknown):
    """No task with this id is known any more; finished tasks are kept for a while only."""

    code = "UNKNOWN_TASK"
    kind = "task"


class DuplicateAgent(AgentPoolError):
    """An agent with the wanted name is alive already."""

    code = "DUPLICATE_AGENT"

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        super().__init__(
            f'Agent "{agent_id}" is alive already. Choose another name, or terminate it first: '
            f"agentpool terminate {agent_id}"
        )


class NoCapacity(AgentPoolError):
    """No agent ran within the time allowed, for want of room or of a quick `start()`; the request was withdrawn and
    nothing waits. `free` is how many slots were free then.
    """

    code = "NO_CAPACITY"

    def __init__(self, pool: str, asked: int, free: int, detail: str = "") -> None:
        self.pool, self.asked, self.free = pool, asked, free
        super().__init__(
            f'Pool "{pool}" did not get {asked} agent(s) to run in time: {free} free slots. {detail}'.rstrip()
        )


class PoolAtCapacity(AgentPoolError):
    """An in-process pool is full and so is its queue of waiters."""

    code = "POOL_AT_CAPACITY"


class WorkersNeeded(AgentPoolError):
    """Pools inside this process (`local://`) have no worker processes; `what` was asked for needs them."""

    code = "WORKERS_NEEDED"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} needs worker processes, and these pools run inside this one (local://). "
            "Start agentpool-master, and connect to its Redis."
        )


class PoolClosed(AgentPoolError):
    """The pool or client was closed; open a new one."""

    code = "POOL_CLOSED"


class QueueFull(AgentPoolError):
    """A bounded queue is at its bound; nothing was added. `retry_after`: seconds until there should be room, at the
    rate at which tasks end; None where that is not known.
    """

    code = "QUEUE_FULL"

    def __init__(self, queue: str, depth: int, bound: int, retry_after: float | None = None) -> None:
        self.queue, self.depth, self.bound, self.retry_after = queue, depth, bound, retry_after
        when = "later" if retry_after is None else f"in about {retry_after:.1f} s"
        super().__init__(f"{queue} is full: {depth} waiting, bound {bound}. Try again {when}, or raise the bound.")


class AgentLimitError(AgentPoolError):
    """A tenant's limit was reached; `code` names which: CONCURRENT_LIMIT, TOTAL_LIMIT, TOKEN_RATE_LIMIT,
    REQUEST_RATE_LIMIT, or TASK_TOKEN_LIMIT. `retry_after`: seconds after which to try again, None where time alone
    does not help.
    """

    _TEXTS: ClassVar[dict[str, str]] = {
        "CONCURRENT_LIMIT": "tasks of this tenant running at once",
        "TOTAL_LIMIT": "what this tenant holds in this pool",
        "TOKEN_RATE_LIMIT": "tokens a minute of this tenant",
        "REQUEST_RATE_LIMIT": "tasks a minute of this tenant",
        "TASK_TOKEN_LIMIT": "tokens of one task",
    }

    def __init__(self, code: str, limit: int, detail: str = "", retry_after: float | None = None) -> None:
        self.code, self.limit, self.retry_after = code, limit, retry_after
        what = self._TEXTS.get(code, "this tenant")
        when = f" Try again in about {retry_after:.1f} s." if retry_after else ""
        super().__init__(f"{code}: the limit of {what} is {limit}.{' ' + detail if detail else ''}{when}")


class Unplaceable(AgentPoolError):
    """No worker can ever run this: no host of the pool has workers with a label that it needs."""

    code = "UNPLACEABLE"

    def __init__(self, what: str, label: str, offers: Sequence[str]) -> None:
        self.label, self.offers = label, tuple(offers)
        known = ", ".join(sorted({word for offer in offers for word in offer.split()})) or "none"
        super().__init__(
            f'{what} needs workers with the label "{label}", and no host of this pool has them. Labels there are: '
            f'{known}. Give a host\'s master `labels = ["{label}"]`, or ask for others.'
        )


class InvalidInput(AgentPoolError):
    """Input was refused before it reached an agent; `path` is where the wrong field is (`$` is the whole)."""

    code = "INVALID_INPUT"

    def __init__(self, message: str, path: str = "$") -> None:
        self.path = path
        super().__init__(message)


class InputTooLarge(InvalidInput):
    """Input is over the pool's `max_input_bytes`."""

    code = "INPUT_TOO_LARGE"

    def __init__(self, size: int, bound: int) -> None:
        self.size, self.bound = size, bound
        super().__init__(
            f"The input has {size} bytes; the bound is {bound}. Send a reference to the data, or raise "
            "max_input_bytes in the pool's settings."
        )


class IdempotencyConflict(AgentPoolError):
    """The same idempotency key was used before with another input."""

    code = "IDEMPOTENCY_CONFLICT"


class AgentTerminated(AgentPoolError):
    """The agent was ended while something was asked of it."""

    code = "AGENT_TERMINATED"


class AgentFailed(AgentPoolError):
    """The agent's `start()` kept failing and its restarts were given up."""

    code = "AGENT_FAILED"


class TaskFailed(AgentPoolError):
    """The agent's `run()` raised; `type`, `message` and `traceback` are what it raised, as text."""

    code = "TASK_FAILED"

    def __init__(self, task_id: str, type: str, message: str, traceback: str = "") -> None:
        self.task_id, self.type, self.message, self.traceback = task_id, type, message, traceback
        super().__init__(f"Task {task_id} failed: {type}: {message}")


class TaskTimedOut(AgentPoolError):
    """The task, or the wait for it, took longer than allowed."""

    code = "TASK_TIMED_OUT"


class TaskCancelled(AgentPoolError):
    """The task was cancelled before it finished."""

    code = "TASK_CANCELLED"


class WorkerLost(TaskFailed):
    """Workers died of the task, three of them while it ran there alone, and it is not tried again; `process_id` was
    the last, `reason` is how it died. A task whose worker dies without its doing goes back, and its caller sees nothing
    of it. Pools inside this process (`local://`) have no worker to lose.
    """

    code = "WORKER_LOST"

    def __init__(self, task_id: str, process_id: str, reason: str) -> None:
        self.process_id, self.reason = process_id, reason
        super().__init__(
            task_id,
            "WorkerLost",
            f"{reason} (worker {process_id}). It may have had effects. Look at it: agentpool dead show {task_id}",
        )
