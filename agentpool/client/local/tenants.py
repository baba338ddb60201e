"""The tenants of a local pool: their limits, and what each uses of them."""

import math
from collections.abc import Mapping

import msgspec

from agentpool.client.local.windows import Window
from agentpool.config import PoolSettings
from agentpool.policy.fair_queue import ESTIMATE_MS, blend
from agentpool.protocol.limits import TenantLimits, TenantUsage, encode_limits

__all__ = ["LocalTenants", "Tenant"]

PLENTY = 1_000_000
"""Tasks that a tenant without limits may begin now."""
SLACK = 1000


class Tenant:
    """What one tenant may, and does."""

    def __init__(self, name: str, limits: TenantLimits) -> None:
        self.name, self.limits = name, limits
        self.live: dict[str, float] = {}
        """Limits that were set while the pool runs."""
        self.tasks = self.waits = 0
        """Tasks that run; of these, those that wait for tasks of their own."""
        self.tokens, self.requests = Window(), Window()
        self.held = False
        """It is at a limit, and has no turn."""
        self.mail: set[str] = set()
        """Names of agents whose mail waits until the tenant may go on."""
        self.last_place_to_mail = False
        """The last place that its limits left went to mail: the next one goes to a task by type, if one waits."""
        self.mean_ms: float | None = None
        self._mean_tokens: float | None = None
        self._by_type: dict[str, tuple[float, float | None]] = {}
        """Mean ms and tokens of a task of each type."""

    @property
    def running(self) -> int:
        """Tasks that count against its limit: one that waits for others lends them its place."""
        return self.tasks - self.waits

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing of it must be remembered."""
        return not (self.tasks or self.held or self.live or self.tokens or self.requests)

    def allowance(self) -> tuple[int, int]:
        """Return how many tasks it may begin now, and in how many ms to look again if that is a matter of time."""
        limits, most, wait = self.limits, PLENTY, 0
        if limits.running:
            most = limits.running - self.running
        if limits.requests_per_minute:
            most = min(most, limits.requests_per_minute - self.requests.total())
            wait = self.requests.wait_ms(limits.requests_per_minute, 1)
        if limits.tokens_per_minute and self.tokens:
            each, used = max(1, math.ceil(self._mean_tokens or 1)), self.tokens.total()
            fit = (limits.tokens_per_minute - used) // each
            # One that is estimated above the limit could never begin otherwise.
            most = min(most, fit if used else max(fit, 1))
            wait = max(wait, self.tokens.wait_ms(limits.tokens_per_minute, each))
        return max(0, most), wait

    def estimate(self, agent_type: str) -> tuple[float, int]:
        """Return the slot time in ms and the tokens that a task of this type will need."""
        ms, tokens = self._by_type.get(agent_type, (self.mean_ms or ESTIMATE_MS, None))
        return ms, math.ceil(tokens or 0)

    def weigh_in(self, agent_type: str, ms: float, tokens: int) -> None:
        """A task of this type took so much."""
        self.mean_ms = blend(self.mean_ms, ms)
        if tokens:
            self._mean_tokens = blend(self._mean_tokens, tokens)
        mean_ms, mean_tokens = self._by_type.get(agent_type, (None, None))
        if tokens or mean_tokens is not None:
            mean_tokens = blend(mean_tokens, tokens)
        self._by_type[agent_type] = blend(mean_ms, ms), mean_tokens


class LocalTenants:
    """All tenants of one pool, by name; those that ask for nothing for long are forgotten."""

    def __init__(self, settings: PoolSettings) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._configured = {name: msgspec.to_builtins(own) for name, own in settings.tenants.items()}
        self._base: dict[str, float] = {"queued": settings.max_queued}
        self._defaults: dict[str, float] = {
            "agents": settings.tenant_agents,
            "running": settings.tenant_running,
            "tokens_per_minute": settings.tenant_tokens_per_minute,
            "tokens_per_task": settings.tenant_tokens_per_task,
            "requests_per_minute": settings.tenant_requests_per_minute,
        }
        self._enough = SLACK

    def of(self, name: str) -> Tenant:
        """Return a tenant, known or new."""
        tenant = self._tenants.get(name)
        if tenant is None:
            self._forget()
            tenant = self._tenants[name] = Tenant(name, self._limits(name, {}))
        return tenant

    def limit(self, name: str, limits: Mapping[str, float | None]) -> str:
        """Set limits live; None takes one back to what is configured. Returns all that are set live, as words."""
        tenant = self.of(name)
        live = {**tenant.live, **limits}
        tenant.live = {limit: value for limit, value in live.items() if value is not None}
        tenant.limits = self._limits(name, tenant.live)
        return encode_limits(tenant.live)

    def names(self) -> set[str]:
        """Return the tenants that have limits of their own, run something, or are held."""
        busy = {name for name, tenant in self._tenants.items() if tenant.tasks or tenant.held or tenant.live}
        return busy | set(self._configured)

    def usage(self, name: str, *, agents: int, queued: int) -> TenantUsage:
        """Return what one tenant uses; of pinned agents and of waiting tasks others know."""
        tenant = self._tenants.get(name) or Tenant(name, self._limits(name, {}))
        return TenantUsage(
            tenant=name,
            agents=agents,
            running=tenant.running,
            queued=queued,
            tokens_last_minute=tenant.tokens.total(),
            requests_last_minute=tenant.requests.total(),
            mean_ms=round(tenant.mean_ms or 0.0, 3),
            held=tenant.held,
            limits=tenant.limits,
            set_live=encode_limits(tenant.live),
        )

    def _limits(self, name: str, live: Mapping[str, float]) -> TenantLimits:
        """What was set live is above the configuration, and that above the defaults."""
        defaults = {} if name == "default" else self._defaults
        values = {**self._base, **defaults, **self._configured.get(name, {}), **live}
        return msgspec.convert(values, TenantLimits, strict=False)

    def _forget(self) -> None:
        if len(self._tenants) >= self._enough:
            self._tenants = {name: tenant for name, tenant in self._tenants.items() if not tenant.is_idle}
            self._enough = 2 * len(self._tenants) + SLACK
