"""What a local pool accepts: bounds of queues, limits of tenants, labels; refused in the words of Redis' scripts."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentpool.agent import AgentType
from agentpool.client.local.registry import LocalRegistry
from agentpool.client.local.tenants import LocalTenants, Tenant
from agentpool.client.local.waiting import Waiting
from agentpool.client.requests import Request, Spawn
from agentpool.clock import monotonic
from agentpool.config import PoolSettings
from agentpool.policy.fair_queue import ESTIMATE_MS
from agentpool.protocol.refusals import refusal

__all__ = ["Admission", "Rate"]


class Rate:
    """How many tasks end in a second, over some ten seconds."""

    def __init__(self) -> None:
        self.value = 0.0
        self._since, self._count = monotonic(), 0

    def count(self) -> None:
        """A task has ended."""
        self._count += 1
        lasted = monotonic() - self._since
        if lasted >= 1:
            latest = self._count / lasted
            self.value = self.value * 0.7 + latest * 0.3 if self.value else latest
            self._since, self._count = monotonic(), 0


class Admission:
    """Checks what is asked for; raises and changes nothing. `labels` are what this process has."""

    def __init__(
        self,
        pool: str,
        settings: PoolSettings,
        types: Mapping[str, AgentType],
        labels: Collection[str],
        tenants: LocalTenants,
        waiting: Waiting,
        registry: LocalRegistry,
    ) -> None:
        self._pool, self._settings, self._types = pool, settings, types
        self._labels, self._tenants, self._waiting, self._registry = sorted(labels), tenants, waiting, registry
        self._lanes = waiting.lanes
        self.rate = Rate()

    def check_agent(self, request: Spawn, agents: int) -> None:
        """Check a pinned agent of a tenant that has so many."""
        limit = self._tenants.of(request.tenant).limits.agents
        if limit and agents >= limit:
            name = request.agent_id.partition("/")[2]
            raise refusal(self._pool, name, ["limited", "TOTAL_LIMIT", limit, 0])
        self._check_labels(request.agent_type, self._types[request.agent_type].info().labels)

    def check_target(self, request: Request) -> str:
        """Check that there is an agent, or a type, for a task and others like it; returns the tenant that counts."""
        name = request.agent_name
        if not name:
            if request.agent_type not in self._types:
                raise refusal(self._pool, request.agent_type, ["unknown_type", *self._types])
            return request.tenant
        agent = self._registry.find(name)
        if agent is None:
            ended = self._registry.ending(name)
            how = ["ended", f"{ended.status} {ended.detail}"] if ended else ["unknown_agent"]
            raise refusal(self._pool, name, how)
        return agent.tenant

    def check(self, requests: Sequence[Request], tenant: str) -> None:
        """Check tasks that differ only in their inputs, and are for the agent or type of the first."""
        first, count = requests[0], len(requests)
        for request in requests:
            size, bound = len(bytes(request.envelope.input)), self._settings.max_input_bytes
            if size > bound:
                raise refusal(self._pool, "", ["too_large", size, bound])
        if not first.agent_name:
            wanted = {*first.lane.split("+")[1:], *self._types[first.agent_type].info().labels}
            self._check_labels(first.agent_type, wanted)
        self._check_bounds(first, count, tenant)
        if first.limits and (reached := self._limit_reached(first, count, self._tenants.of(tenant))):
            raise refusal(self._pool, f'tenant "{first.tenant}"', ["limited", *reached])

    def check_key(self, request: Request, known: tuple[str, str]) -> str:
        """Return the id of the task that a key is known for; raises when that was asked for with another input."""
        task_id, input_digest = known
        if input_digest != request.input_digest:
            raise refusal(self._pool, request.agent_name or request.agent_type, ["conflict", task_id])
        return task_id

    def _check_labels(self, what: str, wanted: Collection[str]) -> None:
        for label in sorted(wanted, reverse=True):
            if label not in self._labels:
                raise refusal(self._pool, what, ["unmatched", label, " ".join(self._labels)])

    def _check_bounds(self, first: Request, count: int, tenant: str) -> None:
        if first.agent_name:
            self._check_bound("full", f"tasks for {first.agent_name}", self._waiting.mail(first.agent_name), count,
                              self._settings.max_queued)  # fmt: skip
        elif not first.parent:
            bound = self._tenants.of(tenant).limits.queued
            self._check_bound("full", f'tasks of tenant "{tenant}"', self._lanes.count(tenant), count, bound)
            self._check_bound("pool_full", "", len(self._lanes), count, self._settings.max_queued_pool)

    def _check_bound(self, word: str, what: str, depth: int, count: int, bound: int) -> None:
        excess = depth + count - bound
        if bound and excess > 0:
            # When there will be room again, at the rate at which tasks have ended of late.
            wait = 1000 * excess / self.rate.value if self.rate.value else 1000
            raise refusal(self._pool, what, [word, depth, bound, round(min(max(wait, 100), 60_000))])

    def _limit_reached(self, request: Request, count: int, tenant: Tenant) -> list[Any] | None:
        """Return which limit of the tenant is reached: code, limit, and ms until it is worth another try."""
        limits, waiting = tenant.limits, self._lanes.count(tenant.name)
        soon = round(tenant.mean_ms or ESTIMATE_MS)
        holds = self._registry.count(tenant.name) + self._waiting.count(tenant.name)
        if request.limits == "total" and limits.agents and holds + count > limits.agents:
            return ["TOTAL_LIMIT", limits.agents, soon]
        if limits.running and tenant.running + waiting + self._ready_mail(tenant.name) + count > limits.running:
            return ["CONCURRENT_LIMIT", limits.running, soon]
        most = limits.tokens_per_minute
        if most and tenant.tokens.total() >= most:
            return ["TOKEN_RATE_LIMIT", most, tenant.tokens.wait_ms(most, 1)]
        most = limits.requests_per_minute
        if most and tenant.requests.total() + waiting + count > most:
            return ["REQUEST_RATE_LIMIT", most, tenant.requests.wait_ms(most, waiting + count)]
        return None

    def _ready_mail(self, tenant: str) -> int:
        """Return how many agents of a tenant, which are not at work, have mail that they can begin with."""
        agents = map(self._registry.find, self._waiting.mailboxes())
        return sum(agent is not None and agent.tenant == tenant and not agent.task_id for agent in agents)
