"""The line of those who wait for an agent: by priority, first come first served within one."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentpool.pool.member import Member

__all__ = ["Waiter", "Waiters"]


class Waiter:
    """One request in line. `ripe`: an agent may be made for it now; `spawning`: one is being made."""

    __slots__ = ("future", "priority", "ripe", "spawning")

    def __init__(self, loop: asyncio.AbstractEventLoop, priority: int, ripe: bool) -> None:
        self.future: asyncio.Future[tuple[Member, bool]] = loop.create_future()
        self.priority, self.ripe, self.spawning = priority, ripe, False

    def fail(self, error: Exception) -> None:
        """Let the request end with an error, unless it was answered already."""
        if not self.future.done():
            self.future.set_exception(error)

    def late_answer(self) -> "Member | None":
        """Return the agent that was handed to a request which then went away; it must be put back."""
        future = self.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()[0]


class Waiters:
    """`count` stand in line. Leaving costs the same anywhere: timeouts and cancellations are common under load."""

    def __init__(self) -> None:
        self._lines: dict[int, OrderedDict[Waiter, None]] = {}
        self._order: list[int] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Waiter]:
        """Yield the waiters in the order in which they are served."""
        for priority in self._order:
            yield from self._lines[priority]

    def add(self, waiter: Waiter, *, first: bool = False) -> None:
        """Put a waiter at the end of the line of its priority, or back at its head."""
        line = self._lines.get(waiter.priority)
        if line is None:
            line = self._lines[waiter.priority] = OrderedDict()
            self._order = sorted(self._lines)
        line[waiter] = None
        if first:
            line.move_to_end(waiter, last=False)
        self.count += 1

    def drop(self, waiter: Waiter) -> None:
        """Take a waiter out, wherever it stands; nothing happens if it is out already."""
        line = self._lines.get(waiter.priority)
        if line is not None and waiter in line:
            del line[waiter]
            self._left(line, waiter.priority)

    def pop(self) -> Waiter | None:
        """Take out the next waiter that still waits."""
        while self.count:
            line = self._lines[self._order[0]]
            waiter, _ = line.popitem(last=False)
            self.count -= 1
            if not line:
                del self._lines[self._order.pop(0)]
            if not waiter.future.done():
                return waiter
        return None

    def _left(self, line: "OrderedDict[Waiter, None]", priority: int) -> None:
        self.count -= 1
        if not line:
            del self._lines[priority]
            self._order.remove(priority)
