"""The line of those who wait for an agent: by priority, first come first served within one."""

import asyncio
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentpool.pool.member import Member

__all__ = ["Waiter", "Waiters"]

SWEEP_MIN = 64
"""Fewer that left are not worth sweeping out."""


class Waiter:
    """One request in line. `ripe`: an agent may be made for it now; `spawning`: one is being made."""

    __slots__ = ("future", "in_line", "priority", "ripe", "spawning")

    def __init__(self, loop: asyncio.AbstractEventLoop, priority: int, ripe: bool) -> None:
        self.future: asyncio.Future[tuple[Member, bool]] = loop.create_future()
        self.priority, self.ripe = priority, ripe
        self.spawning = self.in_line = False

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
    """`count` stand in line. Who leaves is only marked, and swept out when half of the line is such, so that leaving
    costs the same anywhere: timeouts and cancellations are common under load.
    """  # fmt: skip

    def __init__(self) -> None:
        self._lines: dict[int, deque[Waiter]] = {}
        self._first: deque[Waiter] = deque()
        self._gone = 0
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Waiter]:
        """Yield the waiters in the order in which they are served."""
        lines = [self._lines[priority] for priority in sorted(self._lines)]
        return (waiter for waiter in chain.from_iterable(lines) if waiter.in_line)

    def add(self, waiter: Waiter, *, first: bool = False) -> None:
        """Put a waiter at the end of the line of its priority, or back at its head."""
        line = self._lines.get(waiter.priority)
        if line is None:
            line = self._lines[waiter.priority] = deque()
            self._first = self._lines[min(self._lines)]
        if first:
            line.appendleft(waiter)
        else:
            line.append(waiter)
        waiter.in_line = True
        self.count += 1

    def drop(self, waiter: Waiter) -> None:
        """Take a waiter out, wherever it stands; nothing happens if it is out already."""
        if waiter.in_line:
            waiter.in_line = False
            self.count -= 1
            self._gone += 1
            if self._gone > max(SWEEP_MIN, self.count):
                self._sweep()

    def pop(self) -> Waiter | None:
        """Take out the next waiter that still waits."""
        while self.count:
            line = self._first
            if not line:
                self._sweep()
                continue
            waiter = line.popleft()
            if not waiter.in_line:
                self._gone -= 1
                continue
            waiter.in_line = False
            self.count -= 1
            if not waiter.future.done():
                return waiter
        return None

    def _sweep(self) -> None:
        """Drop those who left, and the lines in which nobody stands."""
        kept = {priority: deque(it for it in line if it.in_line) for priority, line in self._lines.items()}
        self._lines = {priority: line for priority, line in kept.items() if line}
        self._first = self._lines[min(self._lines)] if self._lines else deque()
        self._gone = 0
