"""How much is measured of the task path: the full run, a quick look, and what the test of the benchmark needs."""

import msgspec

from bench.tasks.measuring import Plan

__all__ = ["FULL", "QUICK", "TINY", "Sizes"]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds."""

    settle_s: float = 1.0
    """Between what is started and what is measured."""
    rounds: int = 3
    """How often each system has its turn, and each measurement of agentpool alone is repeated; medians count."""
    tasks: int = 20_000
    """Of agentpool, in bulk. Half of them are handed in one by one."""
    peer_share: float = 0.2
    """Peers do this part of them, which takes them longer all the same."""
    calls: int = 300
    """Of an idle system, one after the other."""
    poisson_s: float = 4.0
    poisson_rate: float = 5000.0
    kills: int = 7
    slots_killed: int = 50
    few_tasks: int = 1000
    """Queued by one tenant, against which claims are compared; a batch of claims takes 200."""
    many_tenants: int = 10_000
    tasks_each: int = 100
    """Queued by each of the many tenants."""
    claims: int = 400
    """In each run, on each of the two servers."""
    queued: int = 50_000
    """Tasks whose memory is measured."""

    @property
    def many_tasks(self) -> int:
        """Tasks that the many tenants queue together."""
        return self.many_tenants * self.tasks_each

    def plan(self, *, bulk_only: bool = False) -> Plan:
        """Return what agentpool is to do."""
        single, calls = (0, 0) if bulk_only else (self.tasks // 2, self.calls)
        return Plan(self.tasks, single, calls, self.settle_s)

    def peer_plan(self) -> Plan:
        """Return what a peer is to do."""
        return Plan(self.of_peer(self.tasks), self.of_peer(self.tasks // 2), self.calls, self.settle_s)

    def of_peer(self, tasks: int) -> int:
        """Return how many of these tasks a peer does."""
        return max(1, int(tasks * self.peer_share))


FULL = Sizes()
QUICK = Sizes(
    rounds=1,
    tasks=4000,
    peer_share=0.25,
    calls=100,
    poisson_s=1.5,
    kills=2,
    many_tenants=1000,
    claims=100,
    queued=10_000,
)
TINY = Sizes(
    settle_s=0.05,
    rounds=1,
    tasks=400,
    calls=20,
    poisson_s=0.2,
    poisson_rate=500.0,
    kills=1,
    slots_killed=3,
    few_tasks=400,
    many_tenants=20,
    tasks_each=20,
    claims=20,
    queued=1000,
)
