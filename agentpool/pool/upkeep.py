"""The periodic look: idle agents that are too many end, and agents that used up their quota are noted.

CPU is measured: the time that an agent's own steps took in the loop's thread. On memory see `memory.py`.
"""

from agentpool.clock import monotonic
from agentpool.pool.core import Core
from agentpool.pool.member import Member
from agentpool.pool.memory import MemoryWatch
from agentpool.pool.recycler import Recycler
from agentpool.pool.states import PooledState

__all__ = ["Upkeep"]

LOOK_MIN = 0.05
CPU_SPAN_MIN = 1.0
"""The share of a core is that of at least so many s: everybody uses all of it for a moment."""


class Upkeep:
    """`look_once` is the verb of the pool's one periodic loop."""

    def __init__(self, core: Core, recycler: Recycler) -> None:
        self._core, self._recycler = core, recycler
        self._memory = MemoryWatch(core, recycler)
        self._measured = monotonic()

    def interval(self) -> float:
        """Return how often to look, so that the shortest time limit is kept."""
        config = self._core.config
        limits = (config.maintenance_interval, config.idle_timeout, config.max_instance_age)
        return max(LOOK_MIN, min(limit for limit in limits if limit is not None))

    async def look_when_needed(self) -> None:
        """Look, or wait until there are agents to look at: the first look comes an interval later."""
        if self._core.members:
            await self.look_once()
        else:
            await self._core.populated.wait()

    async def look_once(self) -> None:
        """Do everything that is due."""
        self.end_those_idle_too_long()
        await self.measure()
        self.note_those_over_quota()
        self._recycler.begin_next()
        self._core.spawner.fill()

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
        now = monotonic()
        for member in list(self._core.members.values()):
            if member.state in (PooledState.IDLE, PooledState.ACTIVE):
                self._recycler.consider(member, now)

    async def measure(self) -> None:
        """Bring what is known of each agent's CPU and memory up to date."""
        core, now = self._core, monotonic()
        members = core.members.values()
        at_work = [member for member in members if member.running or member.instance.meter.cpu_s != member.cpu_looked]
        for member in members:
            member.cpu_looked = member.instance.meter.cpu_s
        span = now - self._measured
        if span >= CPU_SPAN_MIN:
            self._measured = now
            for member in members:
                _measure_cpu(member, span)
        if core.config.max_memory_mb is not None:
            await self._memory.look(at_work, self.interval() / 2)


def _measure_cpu(member: Member, span: float) -> None:
    used, member.cpu_seen = member.instance.meter.cpu_s - member.cpu_seen, member.instance.meter.cpu_s
    member.cpu_percent = 100.0 * used / span
