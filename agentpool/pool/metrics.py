"""Figures of a pool, as they are told. A snapshot reads counters: its cost does not depend on the agents."""

from typing import TYPE_CHECKING

import msgspec

from agentpool.pool.figures import Counters, Durations
from agentpool.pool.states import PooledState

if TYPE_CHECKING:
    from agentpool.pool.core import Core

__all__ = ["AgentFacts", "PoolMetrics", "counters", "read_metrics"]


class PoolMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. `total` = starting + idle + active + recycling + leaving; `utilization` is active / total.

    `acquired` - `released` leases are out; each has an active agent unless the pool closed. The other active ones are
    on the way to a request, asked for their health or their snapshot, or finish a run whose lease is over.
    """

    starting: int
    idle: int
    active: int
    recycling: int
    leaving: int
    total: int
    waiting: int
    requests: int
    errors: int
    recycles: int
    spawned: int
    terminated: int
    acquired: int
    released: int
    refused: int
    timed_out: int
    start_failures: int
    last_scale_event_ms: int | None
    scale_direction: str | None
    utilization: float
    wait: Durations
    execution: Durations


class AgentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one agent. `memory_mb` is growth over its baseline; None where it cannot be attributed."""

    agent_id: str
    state: PooledState
    requests: int
    recycles: int
    errors: int
    age_s: float
    idle_s: float
    since_last_use_s: float
    cpu_s: float
    cpu_percent: float | None
    memory_mb: float | None


def counters(core: "Core") -> Counters:
    """Return the sums, those of the pool's earlier lives included."""
    ledger, tally = core.ledger, core.counted
    now = {
        "start_failures": core.circuit.failures,
        "spawned": ledger.spawned,
        "recycles": ledger.recycled,
        "terminated": ledger.count(PooledState.TERMINATED),
        **{name: getattr(tally, name) for name in tally.__slots__},
    }
    return Counters(**{name: getattr(core.before, name) + count for name, count in now.items()})


def read_metrics(core: "Core") -> PoolMetrics:
    """Return a snapshot."""
    ledger, total = core.ledger, core.total
    active = ledger.count(PooledState.ACTIVE)
    return PoolMetrics(
        starting=ledger.count(PooledState.STARTING),
        idle=ledger.count(PooledState.IDLE),
        active=active,
        recycling=ledger.count(PooledState.RECYCLING),
        leaving=core.leaving.places,
        total=total,
        waiting=len(core.waiters),
        **msgspec.structs.asdict(counters(core)),
        last_scale_event_ms=ledger.last_scale_ms,
        scale_direction=ledger.last_scale_direction,
        utilization=active / total if total else 0.0,
        wait=core.waits.read(),
        execution=core.runs.read(),
    )
