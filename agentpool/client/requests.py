"""What may be asked for, as plain data that says the same to every backend: an agent, a task."""

from typing import Any

import msgspec

from agentpool.client.kinds import Kind, milliseconds
from agentpool.errors import AgentFailed, AgentPoolError, AgentTerminated, InvalidInput, TaskTimedOut
from agentpool.protocol.codec import check_name, new_id
from agentpool.protocol.records import TaskEnvelope, TaskHeader
from agentpool.protocol.states import AgentStatus

__all__ = ["PRIORITY", "Request", "Spawn", "new_request"]

PRIORITY_MAX = 9
PRIORITY = 5
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


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is asked for: of one pinned agent, or of any agent of a type; the other of the two is empty."""

    task_id: str
    agent_name: str
    agent_type: str
    tenant: str
    priority: int
    timeout: float | None
    """Seconds that its run may take; in whole milliseconds in the envelope too, for whoever runs it."""
    envelope: TaskEnvelope

    @property
    def later_us(self) -> int:
        """Microseconds by which a task of priority 0 may come later and still be taken before this one."""
        return self.priority * AGE_STEP_US

    @property
    def patience(self) -> float | None:
        """Seconds that a run waits in all, or None for ever."""
        return None if self.timeout is None else self.timeout + RUN_MARGIN_S

    def header(self, reply_to: str = "") -> TaskHeader:
        """Return what is read of the task without its input."""
        return TaskHeader(reply_to, self.agent_name, self.agent_type, self.tenant)

    def timed_out(self, *, while_it_ran: bool) -> TaskTimedOut:
        """Return the error for a run that was cancelled because its patience is over."""
        where = "while it ran" if while_it_ran else "before any agent took it"
        return TaskTimedOut(f"Task {self.task_id} did not finish within {self.timeout} s and was cancelled {where}.")


def new_request(
    pool: str,
    kind: Kind,
    input: Any,
    *,
    agent_name: str = "",
    tenant: str = "default",
    priority: int = PRIORITY,
    timeout: float | None = None,
) -> Request:
    """Check a task for one agent (by name) or for any agent of the kind; raises `InvalidInput`."""
    return Request(
        task_id=f"{pool}/{new_id()}",
        agent_name=agent_name,
        agent_type="" if agent_name else kind.name,
        tenant=check_name("tenant", tenant),
        priority=_check_priority(priority),
        timeout=timeout,
        envelope=TaskEnvelope(input=kind.encode(input), timeout_ms=milliseconds("timeout", timeout)),
    )


def _check_priority(priority: int) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= PRIORITY_MAX:
        raise InvalidInput(f"priority is {priority!r}: it must be 0 (most urgent) to {PRIORITY_MAX}.", "$.priority")
    return priority
