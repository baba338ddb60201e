"""Tasks by type that wait: in a queue per tenant and level, and tenants have turns."""

from collections.abc import Callable, Iterator

from agentpool.client.local.queue import TaskQueue
from agentpool.client.local.tenants import LocalTenants, Tenant
from agentpool.policy.fair_queue import URGENT_TURNS, FairQueue

__all__ = ["BATCH", "NORMAL", "Lanes"]

CHILD, URGENT, NORMAL, BATCH = "child", "urgent", "normal", "batch"


class Lanes:
    """Ids by level, tenant and rank. `estimate(tenant, id)` tells which slot time in ms a task will need.
    `on_limit(tenant, wait_ms)` is called when a tenant has the turn and may not go on: it has none until it is let go.
    """

    def __init__(
        self,
        tenants: LocalTenants,
        estimate: Callable[[Tenant, str], float],
        on_limit: Callable[[Tenant, int], None],
    ) -> None:
        self._tenants, self._estimate, self._on_limit = tenants, estimate, on_limit
        self._levels: dict[str, dict[str, TaskQueue]] = {level: {} for level in (CHILD, URGENT, NORMAL, BATCH)}
        self._turn = 0
        self.fair = FairQueue()

    def __len__(self) -> int:
        return sum(len(queue) for level in self._levels.values() for queue in level.values())

    def count(self, tenant: str) -> int:
        """Return how many tasks of a tenant wait."""
        return sum(len(level[tenant]) for level in self._levels.values() if tenant in level)

    def tenants(self) -> set[str]:
        """Return the tenants of which something waits."""
        return {tenant for level in self._levels.values() for tenant in level}

    def push(self, level: str, tenant: str, task_id: str, rank: float) -> None:
        """Add a task; the smaller its rank, the sooner it comes among its tenant's."""
        self._levels[level].setdefault(tenant, TaskQueue()).push(task_id, rank)
        if not self._tenants.of(tenant).held:
            self.fair.join(tenant)

    def remove(self, level: str, tenant: str, task_id: str) -> None:
        """Take a task out, wherever it stands."""
        self._levels[level][tenant].remove(task_id)
        self._tidy(level, tenant)

    def pop(self, *, only_children: bool) -> str | None:
        """Take out the task whose turn it is: what other tasks wait for first, then urgent ones and others, and batch
        tasks when there is nothing else. None when nothing may begin.
        """
        for level in [CHILD] if only_children else self._order():
            while tenant := self._next(level):
                allowed, wait_ms = tenant.allowance()
                if allowed:
                    return self._take(level, tenant)
                self.hold(tenant, wait_ms)
        return None

    def hold(self, tenant: Tenant, wait_ms: int) -> None:
        """Let a tenant that is at a limit have no turn for now."""
        tenant.held = True
        self.fair.leave(tenant.name)
        self._on_limit(tenant, wait_ms)

    def let_go(self, tenant: Tenant) -> None:
        """Give a tenant its turns back."""
        tenant.held = False
        if any(tenant.name in level for level in self._levels.values()):
            self.fair.join(tenant.name)

    # -- turns --------------------------------------------------------------------------------------------------

    def _order(self) -> Iterator[str]:
        """Yield the levels in the order in which they are served now."""
        yield CHILD
        if self._next(URGENT) and self._next(NORMAL):
            turn, self._turn = self._turn, (self._turn + 1) % URGENT_TURNS
            if turn == URGENT_TURNS - 1:
                yield NORMAL
        yield from (URGENT, NORMAL, BATCH)

    def _next(self, level: str) -> Tenant | None:
        """Return the tenant whose turn it is on a level."""
        ready = [tenant for tenant in self._levels[level] if self.fair.waits(tenant)]
        return self._tenants.of(min(ready, key=self.fair.tag)) if ready else None

    def _take(self, level: str, tenant: Tenant) -> str:
        task_id = self._levels[level][tenant.name].pop()
        self.fair.serve(tenant.name, self._estimate(tenant, task_id), tenant.limits.weight)
        self._tidy(level, tenant.name)
        return task_id

    def _tidy(self, level: str, tenant: str) -> None:
        """Forget a queue that is empty, and the turn of a tenant that waits for nothing."""
        if not self._levels[level][tenant]:
            del self._levels[level][tenant]
        if not any(tenant in queues for queues in self._levels.values()):
            self.fair.leave(tenant)
