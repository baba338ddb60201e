"""The pinned agents of this host, by id."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from agentpool.hosting.pinned import Pinned
from agentpool.hosting.place import Place
from agentpool.hosting.upkeep import Upkeep
from agentpool.pool.calls import brief, describe
from agentpool.protocol.records import DesiredAgent

__all__ = ["Agents"]

log = logging.getLogger(__name__)


class Agents:
    """`on_idle(name, has_mail)`: an agent can take a task; `on_change()`: slots were taken or freed; `resync()`: look
    again at what shall be here.
    """

    def __init__(
        self,
        place: Place,
        *,
        on_idle: Callable[[str, bool], None],
        on_change: Callable[[], None],
        resync: Callable[[], None],
    ) -> None:
        self._place, self._on_idle, self._on_change, self._resync = place, on_idle, on_change, resync
        self._upkeep = Upkeep(place, on_retired=resync)
        self._held: dict[str, Pinned] = {}
        self._leaving: set[Pinned] = set()
        self._draining = False
        self._barred: frozenset[str] = frozenset()
        self._strays: dict[str, DesiredAgent] = {}
        self._errands: set[asyncio.Task[Any]] = set()

    @property
    def count(self) -> int:
        """Agents that use a slot, those on their way out included."""
        return len(self._held) + len(self._leaving)

    def get(self, agent_id: str) -> Pinned | None:
        """Return a held agent."""
        return self._held.get(agent_id)

    def all(self) -> list[Pinned]:
        """Return the held agents."""
        return list(self._held.values())

    def holds(self, name: str) -> bool:
        """Tell whether this agent is held."""
        return f"{self._place.pool}/{name}" in self._held

    def is_idle(self, name: str) -> bool:
        """Tell whether this agent is held and can take a task now."""
        pinned = self._held.get(f"{self._place.pool}/{name}")
        return pinned is not None and pinned.is_idle

    def start(self, desired: DesiredAgent) -> None:
        """Start an agent; an earlier one of the same id, if it still leaves, ends first."""
        if desired.agent_id in self._held or desired.agent_type in self._barred:
            return
        if self._draining:
            self._strays[desired.agent_id] = desired
            return
        earlier = [pinned for pinned in self._leaving if pinned.id == desired.agent_id]
        pinned = Pinned(self._place, desired, self._upkeep, lambda it, mail: self._on_idle(it.name, mail), earlier)
        self._held[pinned.id] = pinned
        pinned.when_ended(self._ended)
        self._on_change()

    def stop(self, agent_id: str, why: str = "terminated") -> None:
        """End an agent that shall no longer be here."""
        self._strays.pop(agent_id, None)
        if pinned := self._held.pop(agent_id, None):
            self._leaving.add(pinned)
            self._run_errand(self._see_off(pinned, why))

    def bar_types(self, types: Collection[str], why: str) -> None:
        """Stop the agents of these types, and start none until `bar_no_types`; then they are to be found missing."""
        self._barred = frozenset(types)
        for pinned in self.all():
            if pinned.desired.agent_type in types:
                self.stop(pinned.id, why)

    def bar_no_types(self) -> None:
        """Agents of all types may start again."""
        self._barred = frozenset()

    def start_no_more(self) -> None:
        """From now on agents are only given back."""
        self._draining = True

    def take_strays(self) -> list[DesiredAgent]:
        """Return the agents that came to this host but were not started any more, for the caller to give back."""
        strays, self._strays = list(self._strays.values()), {}
        return strays

    async def gone(self) -> None:
        """Wait until those on their way out are out."""
        while self._errands:
            await asyncio.wait(self._errands)

    async def _see_off(self, pinned: Pinned, why: str) -> None:
        await pinned.terminate(why)
        self._leaving.discard(pinned)
        log.info("agent.stopped", extra={"agent_id": pinned.id})
        self._on_change()

    def _ended(self, pinned: Pinned) -> None:
        if self._held.get(pinned.id) is pinned:
            del self._held[pinned.id]
            self._on_change()
        if error := pinned.error:
            # Not the agent's fault but ours; the next look at what shall be here starts it again.
            facts = {"agent_id": pinned.id, "error": brief(error), "traceback": describe(error).traceback}
            log.error("agent.lost_track", extra=facts)
            asyncio.get_running_loop().call_later(1.0, self._resync)

    def _run_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
