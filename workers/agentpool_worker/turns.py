"""How late the worker's loops are: asked by the heartbeat's thread, answered in the event loop.

Two loops keep a worker useful, inbox and executor. With each beat both are asked for a turn; the lag is how long the
oldest question has been open. It grows when an agent blocks the event loop, and also when one of the two is stuck
though the event loop turns. Waiting for Redis is no lag: those waits have deadlines of their own.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from agentpool.clock import monotonic

__all__ = ["Turn", "Turns"]


class Turn:
    """One essential loop's part in the answer."""

    def __init__(self, name: str, poke: Callable[[], None], answered: Callable[[], None]) -> None:
        self.name, self.poke = name, poke
        self.open = False
        self._is_away, self._answered = False, answered

    def ask(self) -> None:
        """Want an answer; a loop that is away at Redis need not give one."""
        self.open = not self._is_away
        if self.open:
            self.poke()

    def answer(self) -> None:
        """The loop turned."""
        if self.open:
            self.open = False
            self._answered()

    def away(self) -> "Turn":
        """Return what to enter while the loop waits for Redis."""
        return self

    def __enter__(self) -> None:
        self._is_away = True
        self.answer()

    def __exit__(self, *_: object) -> None:
        self._is_away = False


class Turns:
    """`ask` and `lag` are for the heartbeat's thread, everything else for the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turns: list[Turn] = []
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._last = 0.0

    def of(self, name: str, poke: Callable[[], None]) -> Turn:
        """Count a loop among the essential ones; `poke` makes it turn."""
        turn = Turn(name, poke, self._check)
        self._turns.append(turn)
        return turn

    def ask(self) -> None:
        """Ask for a turn, unless an earlier question is still open."""
        with self._lock:
            if self._asked_at is not None:
                return
            self._asked_at = monotonic()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
            self._loop.call_soon_threadsafe(self._ask_all)

    def lag(self) -> float:
        """Return how late the loops are, in s."""
        with self._lock:
            return self._last if self._asked_at is None else monotonic() - self._asked_at

    def _ask_all(self) -> None:
        for turn in self._turns:
            turn.ask()
        self._check()

    def _check(self) -> None:
        if any(turn.open for turn in self._turns):
            return
        with self._lock:
            if self._asked_at is not None:
                self._last, self._asked_at = monotonic() - self._asked_at, None
