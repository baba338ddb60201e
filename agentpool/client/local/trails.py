"""What happened to a task, for those who follow it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from agentpool.protocol.events import TaskEvent

__all__ = ["Trail"]

TRAIL_MAX = 1000
"""Events of a task that are kept; the oldest go first."""


class Trail:
    """The events of one task. What it reported before anyone followed is there too."""

    def __init__(self) -> None:
        self.followed = False
        """Someone follows: from then on all changes are noted."""
        self._events: deque[TaskEvent] = deque(maxlen=TRAIL_MAX)
        self._noted, self._is_over = 0, False
        self._more = asyncio.Event()

    def note(self, event: TaskEvent) -> None:
        """Add an event."""
        self._events.append(event)
        self._noted += 1
        self._more.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._is_over = True
        self._more.set()

    async def follow(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield the events, first those that are there, until the end."""
        read = 0
        while True:
            read = max(read, self._noted - len(self._events))  # what is lost is passed over
            if read < self._noted:
                read += 1
                yield self._events[read - 1 - (self._noted - len(self._events))]
            elif self._is_over:
                return
            else:
                self._more = self._more if not self._more.is_set() else asyncio.Event()
                await self._more.wait()
