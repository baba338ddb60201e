"""One place in a pool: an agent's id, its state and what is known of it. A recycle changes the instance behind it."""

import asyncio
from math import inf

from agentpool.policy.recycling import Quota
from agentpool.pool.instance import Instance
from agentpool.pool.metrics import AgentFacts
from agentpool.pool.states import PooledState

__all__ = ["Member"]


class Member:
    """`attention`: giving the agent back needs more than putting it into the idle ones; `proved`: starting it was
    worth while.
    """  # fmt: skip

    __slots__ = (
        "attention", "claim", "cpu_looked", "cpu_percent", "cpu_seen", "created", "due", "errors", "id", "instance",
        "last_used", "memory_mb", "old_at", "proved", "quota", "recycles", "requests", "requests_max", "running",
        "state", "successor",
    )  # fmt: skip

    def __init__(self, id: str, instance: Instance, quota: Quota, now: float) -> None:
        self.id, self.instance, self.quota = id, instance, quota
        self.state = PooledState.STARTING
        self.attention = self.proved = False
        self.running = 0
        self.requests = self.recycles = self.errors = 0
        self.created = self.last_used = now
        self.old_at = self.requests_max = inf
        """What is looked at after each run: when, and after how many, the quota of the instance is used up."""
        self.due = ""
        self.cpu_seen = self.cpu_looked = 0.0
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
        self.due, self.successor, self.proved = "", None, False
        self.cpu_seen, self.cpu_percent = instance.meter.cpu_s, None
        self.recycles += 1
        self.look()
        self.ready()

    def ready(self) -> None:
        """Take what the instance has needed by now, before it works, for its baseline; its time begins."""
        age, requests = self.quota.age, self.quota.requests
        self.old_at = inf if age is None else self.instance.born + age
        self.requests_max = inf if requests is None else requests
        self.cpu_looked = self.instance.meter.cpu_s
        self.instance.memory_base_mb, self.memory_mb = self.instance.memory_mb(), None

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
