"""What goes on beside an agent's tasks: health checks, the agent's own heartbeat, its end after `max_idle_time`."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from agentpool.clock import monotonic
from agentpool.hosting.place import Place
from agentpool.pool.instance import Instance
from agentpool.protocol.records import DesiredAgent

__all__ = ["Upkeep"]

BEATS_PER_CALL = 100
BEATS_DELAY = 0.05
"""Beats of agents are gathered this long, in s, and sent together."""
HEALTH_TIMEOUT_MIN = 1.0
RETRY_DELAY = 1.0


class _Agent(Protocol):
    id: str
    name: str
    desired: DesiredAgent
    last_used: float

    async def free(self) -> None: ...


class Upkeep:
    """The same for all pinned agents of a host. `on_retired()` is called when an agent was ended for being idle."""

    def __init__(self, place: Place, on_retired: Callable[[], None]) -> None:
        self._place, self._on_retired = place, on_retired
        self._healthy: set[str] = set()
        self._sending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def of(self, agent: _Agent, instance: Instance) -> Iterator[None]:
        """Look after an agent for the time of the block."""
        tasks = []
        if agent.desired.heartbeat_ms:
            tasks.append(asyncio.create_task(self._beat(agent, instance), name=f"heartbeat of {agent.id}"))
        if agent.desired.max_idle_ms:
            tasks.append(asyncio.create_task(self._retire(agent), name=f"idle time of {agent.id}"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    # -- heartbeats ---------------------------------------------------------------------------------------------

    async def _beat(self, agent: _Agent, instance: Instance) -> None:
        interval = agent.desired.heartbeat_ms / 1000
        while await instance.check_health(max(interval, HEALTH_TIMEOUT_MIN)):
            self._healthy.add(agent.name)
            if self._sending is None or self._sending.done():
                self._sending = asyncio.create_task(self._send(), name="heartbeats of agents")
            await asyncio.sleep(interval)

    async def _send(self) -> None:
        await asyncio.sleep(BEATS_DELAY)
        while self._healthy:
            names = [self._healthy.pop() for _ in range(min(len(self._healthy), BEATS_PER_CALL))]
            await self._place.registry.beat(names)

    # -- idle time ----------------------------------------------------------------------------------------------

    async def _retire(self, agent: _Agent) -> None:
        allowed = agent.desired.max_idle_ms / 1000
        if agent.desired.incarnation > 1:
            agent.last_used -= await self._place.registry.idle_for(agent.id)
        while True:
            await agent.free()
            left = allowed - (monotonic() - agent.last_used)
            if left > 0:
                await asyncio.sleep(left)
            elif await self._place.registry.retire_idle(agent.id):
                self._on_retired()
                return
            else:
                # It has mail, or someone used it a moment ago.
                await asyncio.sleep(min(allowed, RETRY_DELAY))
