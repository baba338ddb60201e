"""The states of workers, agents and tasks, as tables.

Scripts make the moves, and a state machine over all of them checks each move against these tables; the diagrams in the
documentation are drawn from here. An illegal move in Python raises and changes nothing.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

__all__ = [
    "AGENT_MOVES",
    "TASK_MOVES",
    "WORKER_MOVES",
    "AgentStatus",
    "IllegalMove",
    "TaskStatus",
    "WorkerStatus",
    "check_move",
]


class WorkerStatus(StrEnum):
    """A worker process. Idle and running are derived from `ready`."""

    ORDERED = "ordered"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    LOST = "lost"


class AgentStatus(StrEnum):
    """A pinned agent."""

    PENDING = "pending"
    PLACED = "placed"
    IDLE = "idle"
    ACTIVE = "active"
    RECYCLING = "recycling"
    TERMINATED = "terminated"
    FAILED = "failed"


class TaskStatus(StrEnum):
    """A task; everything from `succeeded` on is an outcome, recorded once."""

    QUEUED = "queued"
    DELAYED = "delayed"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INVALID = "invalid_input"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"
    DEAD = "dead"
    LOST = "worker_lost"
    TERMINATED = "agent_terminated"


W, A, T = WorkerStatus, AgentStatus, TaskStatus

WORKER_MOVES: Mapping[WorkerStatus, frozenset[WorkerStatus]] = {
    W.ORDERED: frozenset({W.STARTING, W.READY, W.LOST}),
    W.STARTING: frozenset({W.READY, W.LOST}),
    W.READY: frozenset({W.DRAINING, W.STOPPED, W.LOST}),
    W.DRAINING: frozenset({W.STOPPED, W.LOST}),
    W.STOPPED: frozenset(),
    W.LOST: frozenset(),
}

AGENT_MOVES: Mapping[AgentStatus, frozenset[AgentStatus]] = {
    A.PENDING: frozenset({A.PLACED, A.TERMINATED, A.FAILED}),
    A.PLACED: frozenset({A.IDLE, A.PENDING, A.PLACED, A.TERMINATED, A.FAILED}),
    A.IDLE: frozenset({A.ACTIVE, A.RECYCLING, A.PENDING, A.PLACED, A.TERMINATED, A.FAILED}),
    A.ACTIVE: frozenset({A.IDLE, A.RECYCLING, A.PENDING, A.PLACED, A.TERMINATED, A.FAILED}),
    A.RECYCLING: frozenset({A.IDLE, A.PENDING, A.PLACED, A.TERMINATED, A.FAILED}),
    A.TERMINATED: frozenset(),
    A.FAILED: frozenset(),
}

OUTCOMES = frozenset(
    {T.SUCCEEDED, T.FAILED, T.INVALID, T.CANCELLED, T.TIMED_OUT, T.EXPIRED, T.DEAD, T.LOST, T.TERMINATED}
)

TASK_MOVES: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    T.QUEUED: frozenset({T.LEASED, T.CANCELLED, T.EXPIRED, T.TERMINATED}),
    T.DELAYED: frozenset({T.QUEUED, T.CANCELLED, T.EXPIRED, T.TERMINATED}),
    T.LEASED: (OUTCOMES - {T.EXPIRED}) | {T.QUEUED, T.DELAYED},
    **{outcome: frozenset() for outcome in OUTCOMES},
}

S = TypeVar("S", bound=StrEnum)


class IllegalMove(ValueError):
    """A state change that its table does not allow."""


def check_move(moves: Mapping[S, Iterable[S]], source: S, target: S, id: str) -> S:
    """Return `target` if the table allows it from `source`; raise `IllegalMove` naming from, to and id."""
    if target not in moves[source]:
        raise IllegalMove(f"{id}: no move from {source} to {target}")
    return target
