"""`AgentPool`: what a program sees. The parts are put together here and nowhere else.

They stop in this order: the periodic look, so that it begins nothing more; starts under way; idle agents; then those
in use (`closing.py`).
"""

import asyncio
from asyncio import _get_running_loop as running_loop  # None where there is none
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

from agentpool.agent import Agent, AgentType, Context, check_agent_class
from agentpool.clock import monotonic
from agentpool.periodic import Periodic
from agentpool.pool.acquiring import Acquirer
from agentpool.pool.closing import CloseReport, close
from agentpool.pool.config import PoolConfig
from agentpool.pool.core import Core
from agentpool.pool.instance import MakeContext
from agentpool.pool.lease import Lease
from agentpool.pool.ledger import PoolEvent
from agentpool.pool.metrics import AgentFacts, PoolMetrics, read_metrics
from agentpool.pool.recycler import Recycler
from agentpool.pool.saving import SaveReport, load_state, save_state
from agentpool.pool.spawner import Spawner
from agentpool.pool.states import PooledState
from agentpool.pool.storage import Storage
from agentpool.pool.upkeep import Upkeep

__all__ = ["AgentPool"]

PRIORITY = 5
"""Of a request that does not say; smaller is served first."""


class AgentPool:
    """A bounded set of agents of one class in one event loop. Open it with `async with`, or `open()` and `close()`.

    `name` comes before the ids of its agents; `context` makes what agents are told of themselves;
    `times_runs`: `metrics()` tell how long runs took.
    """

    def __init__(
        self,
        agent: type[Agent],
        config: PoolConfig | None = None,
        *,
        name: str = "local",
        context: MakeContext | None = None,
        times_runs: bool = True,
    ) -> None:
        self.config, self.name = config or PoolConfig(), name
        self.type = AgentType(check_agent_class(getattr(agent, "__name__", repr(agent)), agent))
        self._core = Core(self.type, self.config, name, context or self._default_context, times_runs=times_runs)
        self._acquirer = Acquirer(self._core)
        self._spawner = self._core.spawner = Spawner(self._core)
        self._recycler = self._core.recycler = Recycler(self._core, self._spawner)
        self._upkeep = Upkeep(self._core, self._recycler)
        self._loop = Periodic(f"upkeep of {name}", self._upkeep.look_when_needed, self._upkeep.interval())
        self._closing: asyncio.Task[CloseReport] | None = None

    async def open(self) -> None:
        """Begin: agents are made in the background up to `min_size`; `warm()` waits for them."""
        if self._core.loop is not None:
            raise RuntimeError(f'pool "{self.name}" was opened already: a pool lives once')
        self._core.open()
        self._spawner.fill()
        self._loop.start()

    async def close(self, drain_timeout: float | None = None) -> CloseReport:
        """End every agent, those in use after `drain_timeout` s at the latest; may be called twice."""
        if self._core.loop is None:
            self._core.open()
        self._core.check_loop()
        if self._closing is None:
            timeout = self.config.drain_timeout if drain_timeout is None else drain_timeout
            self._closing = asyncio.create_task(self._close(timeout), name=f"close pool {self.name}")
        return await asyncio.shield(self._closing)

    async def _close(self, drain_timeout: float) -> CloseReport:
        ladder = asyncio.create_task(close(self._core, self._spawner, self._recycler, drain_timeout))
        await self._loop.stop()
        return await ladder

    async def __aenter__(self) -> "AgentPool":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    # -- agents -------------------------------------------------------------------------------------------------

    def acquire(self, timeout: float | None = None, *, priority: int = PRIORITY) -> Lease:
        """Ask for an agent: `async with pool.acquire() as agent`, or `agent = await pool.acquire()` and `release`.

        Raises `AcquireTimeout` (a TimeoutError), `PoolAtCapacity`, `PoolClosed`, `StartFailed`, `SpawnCircuitOpen`.
        """
        return Lease(self, timeout, priority)

    def take_idle(self) -> Lease | None:
        """Return an idle agent at once, or None when there is none, or when it would be asked for its health first."""
        core = self._core
        if not (core.idle and core.short):
            return None
        core.waits.at_once += 1
        core.counted.acquired += 1
        return Lease(self, None, PRIORITY, core.take_idle())

    def release(self, lease: Lease) -> None:
        """Give an agent back; nothing happens when it was given back already. Its task, if one runs, is cancelled."""
        member = lease._member
        if member is None:
            return
        if lease._pool is not self:
            raise ValueError(f'the agent belongs to pool "{lease._pool.name}": release it there')
        core = self._core
        if running_loop() is not core.loop:
            core.check_loop()
        lease._member = None
        core.counted.released += 1
        if member.state is PooledState.ACTIVE:
            core.give_back(member)

    async def run(self, input: Any, *, timeout: float | None = None, priority: int = PRIORITY) -> Any:
        """Run one task on any agent; `timeout` s bound the wait for the agent."""
        async with self.acquire(timeout, priority=priority) as agent:
            return await agent.run(input)

    async def warm(self) -> int:
        """Wait until `min_size` agents are ready, as far as there is room; raises why they cannot be started."""
        self._core.check_loop()
        return await self._spawner.warm()

    def drain_excess(self) -> int:
        """End idle agents above `min_size` now; returns how many."""
        self._core.check_loop()
        return self._upkeep.drain_excess()

    # -- for a host of many pools -------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Places taken, at most `max_size`: agents starting, idle, active, recycling, and the `leaving` ones."""
        return self._core.total

    @property
    def leaving(self) -> int:
        """How many of `total` have ended and clean up, so that their places will be free without more ado."""
        return self._core.leaving.places

    @property
    def unclaimed(self) -> int:
        """How many agents are being made for which nobody waits: the next requests take these, and need no others."""
        return self._spawner.unclaimed

    @property
    def idle(self) -> int:
        """Agents that can be had at once."""
        return len(self._core.idle)

    def oldest_idle(self) -> float | None:
        """Return since when, in s of `time.monotonic()`, the agent that `evict_idle()` would end has been idle."""
        return self._core.idle[0].last_used if self._core.idle else None

    def evict_idle(self) -> bool:
        """End the idle agent that was not used for longest, even below `min_size`; False when none is idle."""
        self._core.check_loop()
        if not self._core.idle:
            return False
        self._core.end(self._core.idle[0], "evicted", refill=False)
        return True

    def evict(self) -> bool:
        """End an idle agent, or else one that is being made and for which nobody waits; False when there is none."""
        return self.evict_idle() or self._spawner.call_off_one("evicted")

    # -- what is known ------------------------------------------------------------------------------------------

    def metrics(self) -> PoolMetrics:
        """Return a snapshot of the pool's figures; its cost does not depend on the number of agents."""
        return read_metrics(self._core)

    def transitions(self) -> dict[str, int]:
        """Return how often each change of state took place."""
        return self._core.ledger.transitions()

    def agents(self) -> list[AgentFacts]:
        """Return what is known of each agent."""
        now = monotonic()
        return [member.facts(now) for member in self._core.members.values()]

    def events(self) -> AsyncIterator[PoolEvent]:
        """Yield each change of an agent's state from the first step of the iterator on."""
        return self._core.ledger.events()

    def subscribe(self, listener: Callable[[PoolEvent], None]) -> Callable[[], None]:
        """Call `listener` at each change of an agent's state; returns what ends that."""
        return self._core.ledger.subscribe(listener)

    # -- beyond the process -------------------------------------------------------------------------------------

    async def save_state(self, storage: Storage, *, timeout: float = 10.0) -> SaveReport:
        """Save the agents and their snapshots; those in use are asked when they are given back within `timeout` s."""
        self._core.check_loop()
        return await save_state(self._core, storage, timeout)

    async def load_state(self, storage: Storage, *, start_clean: bool = False) -> int:
        """Bring saved agents back; returns how many. A state that cannot be used is refused with `StateRefused`, or,
        with `start_clean`, left aside.
        """  # fmt: skip
        self._core.check_loop()
        return await load_state(self._core, self._spawner, storage, start_clean=start_clean)

    def _default_context(self, agent_id: str, task_id: str | None) -> Context:
        return Context(agent_id=agent_id, pool=self.name, task_id=task_id)
