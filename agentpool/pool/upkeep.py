"""The periodic look: idle agents that are too many end, and agents that used up their quota are noted.

CPU is measured: the time that an agent's own steps took in the loop's thread. Memory cannot be measured for one of
several objects in a process; an agent that can tell has a method `memory_mb()`, and for the others the growth of the
process (PSS) since the agent was first seen is shared out evenly, which is exact only for an agent alone.
"""

import asyncio
from pathlib import Path

from agentpool.clock import monotonic
from agentpool.pool.core import Core
from agentpool.pool.member import Member
from agentpool.pool.recycler import Recycler
from agentpool.pool.states import PooledState

__all__ = ["Upkeep", "process_memory_mb"]

LOOK_MIN = 0.05


class Upkeep:
    """`look_once` is the verb of the pool's one periodic loop."""

    def __init__(self, core: Core, recycler: Recycler) -> None:
        self._core, self._recycler = core, recycler
        self._looked = monotonic()

    def interval(self) -> float:
        """Return how often to look, so that the shortest time limit is kept."""
        config = self._core.config
        limits = (config.maintenance_interval, config.idle_timeout, config.max_instance_age)
        return max(LOOK_MIN, min(limit for limit in limits if limit is not None))

    async def look_once(self) -> None:
        """Do everything that is due."""
        self.end_those_idle_too_long()
        await self.measure()
        self.note_those_over_quota()
        self._recycler.begin_next()
        self._core.fill()

    def end_those_idle_too_long(self) -> int:
        """End idle agents above `min_size` that nobody used for `idle_timeout`; returns how many."""
        core, limit, ended = self._core, monotonic() - self._core.config.idle_timeout, 0
        while len(core.idle) > core.config.min_size and core.idle[0].last_used <= limit:
            core.end(core.idle[0], "idle too long")
            ended += 1
        return ended

    def drain_excess(self) -> int:
        """End all idle agents above `min_size`, those not used for longest first; returns how many."""
        core = self._core
        excess = max(0, len(core.idle) - core.config.min_size)
        for member in core.idle[:excess]:
            core.end(member, "more than are kept ready")
        return excess

    def note_those_over_quota(self) -> None:
        """Hand those that are due to the recycler, which keeps to its budget."""
        for member in list(self._core.members.values()):
            if member.state in (PooledState.IDLE, PooledState.ACTIVE):
                self._recycler.consider(member)

    async def measure(self) -> None:
        """Bring each agent's share of CPU and memory up to date."""
        core, now = self._core, monotonic()
        span, self._looked = now - self._looked, now
        for member in core.members.values():
            _measure_cpu(member, span)
        if core.config.max_memory_mb is None:
            return
        process_mb = await asyncio.to_thread(process_memory_mb)
        for member in core.members.values():
            if member.state is PooledState.STARTING:
                continue  # its baseline is what it needs once it is ready
            _measure_memory(member, process_mb, len(core.members))


def process_memory_mb() -> float | None:
    """Return the memory of this process in MB, its share of shared pages included (PSS); None where it is not told."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), None)


def _measure_cpu(member: Member, span: float) -> None:
    used, member.cpu_seen = member.instance.meter.cpu_s - member.cpu_seen, member.instance.meter.cpu_s
    member.cpu_percent = 100.0 * used / span if span >= LOOK_MIN else None


def _measure_memory(member: Member, process_mb: float | None, agents: int) -> None:
    own = member.instance.memory_mb()
    seen = process_mb if own is None else own
    if seen is None:
        return
    if member.instance.memory_base_mb is None:
        member.instance.memory_base_mb = seen
    growth = max(0.0, seen - member.instance.memory_base_mb)
    member.memory_mb = growth if own is not None else growth / agents
