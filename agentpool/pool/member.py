"""One place in a pool: an agent's id, its state and what is known of it. A recycle changes the instance behind it."""

import asyncio

from agentpool.policy.recycling import Quota
from agentpool.pool.instance import Instance
from agentpool.pool.metrics import AgentFacts
from agentpool.pool.states import PooledState

__all__ = ["Member"]


class Member:
    """`attention` is set when giving the agent back needs more than putting it into the idle ones."""

    __slots__ = (
        "attention", "claim", "cpu_percent", "cpu_seen", "created", "due", "errors", "id", "instance", "last_used",
        "memory_mb", "quota", "recycles", "requests", "running", "state", "successor",
    )  # fmt: skip

    def __init__(self, id: str, instance: Instance, quota: Quota, now: float) -> None:
        self.id, self.instance, self.quota = id, instance, quota
        self.state = PooledState.STARTING
        self.attention = False
        self.running = 0
        self.requests = self.recycles = self.errors = 0
        self.created = self.last_used = now
        self.due = ""
        self.cpu_seen = 0.0
        self.cpu_percent: float | None = None
        self.memory_mb: float | None = None
        self.successor: Instance | None = None
        self.claim: asyncio.Future[bool] | None = None

    def look(self) -> None:
        """Work out whether the way back to the idle ones is the short one."""
        self.attention = bool(self.instance.broken or self.successor or self.claim)

    def adopt(self, instance: Instance, quota: Quota) -> None:
        """Put a fresh instance into this place."""
        self.instance, self.quota = instance, quota
        self.due, self.successor = "", None
        self.cpu_seen, self.cpu_percent, self.memory_mb = instance.meter.cpu_s, None, None
        self.recycles += 1
        self.look()

    def facts(self, now: float) -> AgentFacts:
        """Return what is known of the agent."""
        return AgentFacts(
            agent_id=self.id,
            state=self.state,
            requests=self.requests,
            recycles=self.recycles,
            errors=self.errors,
            age_s=now - self.instance.born,
            idle_s=now - self.last_used if self.state is PooledState.IDLE else 0.0,
            since_last_use_s=now - self.last_used,
            cpu_s=self.instance.meter.cpu_s,
            cpu_percent=self.cpu_percent,
            memory_mb=self.memory_mb,
        )
