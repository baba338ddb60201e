"""What has happened in the pools of this process: the latest events, and those who follow them."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection

from agentpool.clock import wall_ms
from agentpool.protocol.events import Event

__all__ = ["EventLog"]

EVENTS_MAX = 10_000
"""Events kept, and events that wait for a follower who does not read; older ones are dropped."""


class EventLog:
    """The events of all pools of one client, in order."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._followers: set[_Follower] = set()
        self._count = 0

    def note(self, pool: str, type: str, agent_id: str = "", process_id: str = "", detail: str = "") -> None:
        """Add an event."""
        self._count += 1
        at = wall_ms()
        event = Event(f"{at}-{self._count}", pool, str(type), at, agent_id, process_id, detail)
        self._events.append(event)
        for follower in self._followers:
            follower.tell(event)

    def read(self, pool: str, limit: int) -> list[Event]:
        """Return the latest events of a pool, oldest first."""
        events = [event for event in self._events if event.pool_name == pool]
        return events[-limit:]

    def close(self) -> None:
        """Let those who follow come to the end, once they have read what is there."""
        for follower in self._followers:
            follower.end()

    async def follow(self, pools: Collection[str]) -> AsyncGenerator[Event, None]:
        """Yield events of the pools from now on, until the client closes."""
        follower = _Follower(pools)
        self._followers.add(follower)
        try:
            while event := await follower.next():
                yield event
        finally:
            self._followers.discard(follower)


class _Follower:
    """What one follower has not read yet."""

    def __init__(self, pools: Collection[str]) -> None:
        self._pools = frozenset(pools)
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._more = asyncio.Event()
        self._is_over = False

    def tell(self, event: Event) -> None:
        if event.pool_name in self._pools:
            self._events.append(event)
            self._more.set()

    def end(self) -> None:
        self._is_over = True
        self._more.set()

    async def next(self) -> Event | None:
        while not self._events:
            if self._is_over:
                return None
            self._more.clear()
            await self._more.wait()
        return self._events.popleft()
