"""The names of everything that happens: one list for the event stream and for log lines."""

from enum import StrEnum
from typing import Any

import msgspec

__all__ = ["Event", "EventName", "TaskEvent"]


class EventName(StrEnum):
    """Names are `<what>.<what happened to it>`; `broke` is an agent that had been running."""

    AGENT_SPAWNED = "agent.spawned"
    AGENT_PLACED = "agent.placed"
    AGENT_WAITING = "agent.waiting"
    AGENT_STARTED = "agent.started"
    AGENT_START_FAILED = "agent.start_failed"
    AGENT_BROKE = "agent.broke"
    AGENT_MOVED = "agent.moved"
    AGENT_RESTORED = "agent.restored"
    AGENT_TERMINATED = "agent.terminated"
    AGENT_FAILED = "agent.failed"
    TASK_DEAD = "task.dead"
    TASK_REPLAYED = "task.replayed"
    TENANT_LIMITED = "tenant.limited"
    WORKER_ORDERED = "worker.ordered"
    WORKER_STARTING = "worker.starting"
    WORKER_READY = "worker.ready"
    WORKER_RESTORED = "worker.restored"
    WORKER_DRAINING = "worker.draining"
    WORKER_STOPPED = "worker.stopped"
    WORKER_LOST = "worker.lost"
    WORKER_REAPED = "worker.reaped"
    WORKER_BLOCKED = "worker.blocked"
    WORKER_UNBLOCKED = "worker.unblocked"
    WORKER_BOOT_FAILED = "worker.boot_failed"
    POOL_APPLIED = "pool.applied"
    POOL_SCALED = "pool.scaled"
    POOL_REMOVED = "pool.removed"
    POOL_RESTARTS_STOPPED = "pool.restarts_stopped"
    POOL_RESTARTS_RESUMED = "pool.restarts_resumed"
    SERVER_RESTARTED = "server.restarted"
    HOST_JOINED = "host.joined"
    HOST_LEFT = "host.left"
    LEADER_ELECTED = "leader.elected"
    LEADER_LOST = "leader.lost"


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a pool's event stream. `at` is Redis time in ms; `id` is the entry's place in the stream."""

    id: str
    pool_name: str
    type: str
    at: int
    agent_id: str = ""
    process_id: str = ""
    detail: str = ""


class TaskEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to one task. `at` is Redis time in ms; `data` is what the agent emitted."""

    type: str
    task_id: str
    at: int = 0
    detail: str = ""
    data: Any = None
