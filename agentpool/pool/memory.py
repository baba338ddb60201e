"""Whose memory has grown. Of one object in a process it cannot be measured, so this is what is said of it:

* An agent with a method `memory_mb()` tells itself; its baseline is what it said when it was ready.
* Else growth of the process between two looks belongs to an agent if that alone was at work in between, and no agent
  began or ended, here or in another pool of the process. What else the program does is counted with it.
* What remains is known of all together only. When the process has grown by more than all its agents may, those of this
  pool are replaced one by one, most requests first, until it has shrunk. When all were, the growth is not theirs, and
  becomes the baseline: so nobody is replaced twice for the same growth, however innocent.

The baseline of the process rises with what it grows by while the number of agents does: that is what they need.
"""

import asyncio
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from agentpool.clock import monotonic
from agentpool.pool.core import Core
from agentpool.pool.member import Member
from agentpool.pool.recycler import Recycler
from agentpool.pool.states import PooledState

__all__ = ["MemoryWatch", "process_memory_mb"]

_watched: "weakref.WeakSet[Core]" = weakref.WeakSet()
_watched_lock = threading.Lock()
"""All pools of the process, which may be in several loops: its memory is theirs together."""
_read: tuple[float, float | None] = (-1e9, None)
"""When the process was measured last, and what came of it: with many pools that costs more than all else."""


class MemoryWatch:
    """Brings `memory_mb` of each agent up to date, and has agents replaced when the process has grown too much."""

    def __init__(self, core: Core, recycler: Recycler) -> None:
        self._core, self._recycler = core, recycler
        self._seen: float | None = None
        self._base = 0.0
        self._over_since: float | None = None
        self._agents = self._changes = 0
        with _watched_lock:
            _watched.add(core)

    async def look(self, at_work: Sequence[Member], age_max: float) -> None:
        """Measure; `at_work` did something since the last look. A figure of the process may be `age_max` s old."""
        blind = [member for member in self._core.members.values() if not self._told(member)]
        if not blind:
            return
        process_mb = await recent_process_memory_mb(age_max)
        if process_mb is not None:
            blind = [member for member in blind if member.state in (PooledState.IDLE, PooledState.ACTIVE)]
            self._note(process_mb, blind, at_work)

    @staticmethod
    def _told(member: Member) -> bool:
        """Ask the agent; tells whether it could say."""
        if member.state is PooledState.STARTING:
            return False
        own = member.instance.memory_mb()
        if own is None:
            return False
        member.memory_mb = max(0.0, own - (member.instance.memory_base_mb or 0.0))
        return True

    def _note(self, process_mb: float, blind: Sequence[Member], at_work: Sequence[Member]) -> None:
        mine, agents = len(self._core.members) - len(self._core.starting), agents_in_process()
        changes, seen = _changes_in(self._core), self._seen
        undisturbed = mine == agents == self._agents and changes == self._changes
        more = agents > self._agents
        self._seen, self._agents, self._changes = process_mb, agents, changes
        if seen is None:
            self._base = process_mb
            return
        grown = process_mb - seen
        if undisturbed and len(at_work) == 1 and at_work[0] in blind:
            at_work[0].memory_mb = max(0.0, (at_work[0].memory_mb or 0.0) + grown)
        self._base = min(process_mb, self._base + max(0.0, grown) if more else self._base)
        self._replace_one(process_mb, blind, agents)

    def _replace_one(self, process_mb: float, blind: Sequence[Member], agents: int) -> None:
        limits = [member.quota.memory_mb for member in blind if member.quota.memory_mb is not None]
        if not limits:
            return
        grown, limit = process_mb - self._base, agents * sum(limits) / len(limits)
        if grown <= limit / 2:  # not at the limit itself, about which it may waver
            self._over_since = None
        if grown <= limit or any(member.due for member in blind):
            return
        if self._over_since is None:
            self._over_since = monotonic()
        old = [member for member in blind if member.instance.born < self._over_since]
        if old:
            member = max(old, key=lambda member: member.instance.requests)
            self._recycler.mark(member, f"the process grew by {grown:.0f} MB, over the quota of all its agents")
        else:
            self._base, self._over_since = process_mb, None


def _changes_in(core: Core) -> int:
    """Return a number that grows whenever an agent begins, ends or is replaced."""
    return core.ledger.spawned + core.ledger.recycled + core.ledger.count(PooledState.TERMINATED)


def agents_in_process() -> int:
    """Return how many agents are ready in all pools of this process."""
    with _watched_lock:
        return sum(len(core.members) - len(core.starting) for core in _watched)


async def recent_process_memory_mb(age_max: float) -> float | None:
    """Return `process_memory_mb()`, at most `age_max` s old; it is read in a thread, as that may take long."""
    global _read
    if monotonic() - _read[0] > age_max:
        _read = (monotonic(), await asyncio.to_thread(process_memory_mb))
    return _read[1]


def process_memory_mb() -> float | None:
    """Return the memory of this process in MB, its share of shared pages included (PSS); None where it is not told."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), None)
