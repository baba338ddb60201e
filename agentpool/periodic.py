"""Run a verb on an interval or a wake-up until stopped.

A loop is a verb (`Reaper.reap_once`) and this class; tests call the verb. An error is logged and the loop goes on,
later each time: what failed once may work when Redis is back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from agentpool.clock import monotonic
from agentpool.errors import RedisUnavailable

__all__ = ["Periodic", "end_task", "expire_after"]

log = logging.getLogger(__name__)

ERROR_DELAY_MAX = 5.0
STOP_RETRY = 0.5


async def end_task(task: "asyncio.Task[object]") -> None:
    """Cancel a task until it has ended: a library under it may lose a cancellation that comes with its result."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=STOP_RETRY)


def expire_after(future: "asyncio.Future[Any]", delay: float) -> asyncio.TimerHandle:
    """Have a future that somebody awaits end with `TimeoutError` in `delay` s, unless it is done by then; to be
    cancelled once it is. Costs a third of what `asyncio.timeout` does.
    """
    return future.get_loop().call_later(delay, _expire, future)


def _expire(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(TimeoutError())
        future.exception()  # who was cancelled in this very step does not hear it


class Periodic:
    """A named loop. `interval` is in seconds; the verb may return a shorter delay until its next turn."""

    def __init__(self, name: str, verb: Callable[[], Awaitable[float | None]], interval: float) -> None:
        self.name, self.interval = name, interval
        self._verb = verb
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._errors = 0
        self._turn_began: float | None = None
        self._turn_ended = monotonic()
        self.last_success = self._turn_ended

    def start(self) -> None:
        """Begin; the first turn comes at once."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    def wake(self) -> None:
        """Let the next turn come at once; wake-ups that come during a turn are kept as one."""
        self._woken.set()

    @property
    def last_turn(self) -> float:
        """When the loop last showed that it does not hang: now while it waits or is stopped, else its turn's start."""
        if self._task and self._task.done():
            return self._turn_ended
        return monotonic() if self._turn_began is None else self._turn_began

    @property
    def failing(self) -> bool:
        """Whether the last turn raised."""
        return self._errors > 0

    async def stop(self) -> None:
        """End the loop, also in the middle of a turn; may be called twice."""
        task, self._task = self._task, None
        if task:
            await end_task(task)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            self._turn_began = monotonic()
            try:
                delay = await self._turn()
            finally:
                self._turn_began, self._turn_ended = None, monotonic()
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._woken.wait()

    async def _turn(self) -> float:
        try:
            asked = await self._verb()
        except RedisUnavailable as error:
            log.warning("redis.unavailable", extra={"loop": self.name, "error": str(error)})
        except Exception as error:
            log.exception("loop.failed", extra={"loop": self.name, "error": str(error)})
        else:
            self._errors = 0
            self.last_success = monotonic()
            return self.interval if asked is None else min(self.interval, asked)
        self._errors += 1
        return min(self.interval * 2.0 ** min(self._errors, 6), max(ERROR_DELAY_MAX, self.interval))
