"""What must still be said when a caller no longer waits: withdraw, cancel, release.

It is tried until it is heard, in the background, because the caller was cancelled or has its error already.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, RedisUnavailable

__all__ = ["Cleanup"]

INSIST_S = 60.0
CALLER_WAITS_S = 1.0
CLOSE_WAITS_S = 2.0


class Cleanup:
    """Undoings under way."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, verb: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        """Begin an undoing, which goes on when the caller ends."""
        task = asyncio.create_task(_insist(verb), name="client.cleanup")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, verb: Callable[[], Awaitable[object]]) -> None:
        """Begin an undoing and wait a moment for it, so that usually it is done when a cancelled caller ends."""
        await self.wait(self.start(verb), CALLER_WAITS_S)

    @staticmethod
    async def wait(task: asyncio.Task[None], timeout: float) -> None:
        """Wait for an undoing at most `timeout` seconds; it goes on when this ends or is cancelled."""
        await asyncio.wait([task], timeout=timeout)

    async def close(self) -> None:
        """Wait a moment for what is under way, then give it up."""
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=CLOSE_WAITS_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


async def _insist(verb: Callable[[], Awaitable[object]]) -> None:
    deadline = monotonic() + INSIST_S
    while monotonic() < deadline:
        try:
            await verb()
        except RedisUnavailable:
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)
        except AgentPoolError:
            return  # there is nothing left to undo
        else:
            return
