"""One subscription that comes back: to a few channels, on a connection of its own.

Messages are hints, so losing some is no fault; what matters is that whoever listens learns when it may have missed
any. `on_ready` is called after every (re)subscription, upon which the listener compares itself with Redis. A dead
connection looks like a quiet one, so a silent one is pinged and has a deadline for its answer. Where the user may not
subscribe at all, that is said once, tried again seldom, and everything works by what is read at intervals.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import NoPermissionError

from agentpool.periodic import end_task
from agentpool.store.connection import Connection
from agentpool.store.link import Listener

__all__ = ["Subscription"]

log = logging.getLogger(__name__)

PING_INTERVAL = 15.0
PONG_TIMEOUT = 5.0
DELAY_MIN, DELAY_MAX = 0.05, 1.0
FORBIDDEN_DELAY = 30.0


class Subscription:
    """Calls `on_message(channel, text)` for each message, and `on_ready()` whenever it (re)subscribed."""

    def __init__(
        self,
        connection: Connection,
        channels: Sequence[str],
        *,
        on_message: Callable[[str, str], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.is_up = False
        """Whether messages come now."""
        self._connection, self._channels = connection, tuple(channels)
        self._on_message, self._on_ready = on_message, on_ready
        self._task: asyncio.Task[None] | None = None
        self._confirmed = 0
        self._warned = False

    def start(self) -> None:
        """Listen in a task of its own."""
        self._task = asyncio.create_task(self.run(), name=f"subscription {self._channels[0]}")

    async def stop(self) -> None:
        """End that task; may be called twice."""
        task, self._task = self._task, None
        if task:
            await end_task(task)

    async def run(self) -> None:
        """Listen until cancelled; never ends by itself."""
        delay = DELAY_MIN
        while True:
            try:
                await self._listen()
            except NoPermissionError as error:
                self._warn(error)
                delay = FORBIDDEN_DELAY
            except Exception as error:  # noqa: BLE001 (also what a listener raises: the next message may do better)
                delay = DELAY_MIN if self.is_up else min(delay * 2, DELAY_MAX)
                log.info("subscription.lost", extra={"channel": self._channels[0], "error": str(error)})
            finally:
                self.is_up = False
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)

    async def _listen(self) -> None:
        """Subscribe and pass messages on until the connection fails, which raises."""
        self._confirmed = 0
        async with asyncio.timeout(self._connection.timeout):
            link = await self._connection.listen(self._take)
        try:
            link.write("SUBSCRIBE", *self._channels)
            await _lost(link, self._connection.timeout)
            if not self.is_up:
                raise TimeoutError(f"not subscribed within {self._connection.timeout} s")
            while True:
                await _lost(link, PING_INTERVAL - link.silent_s)
                if link.silent_s >= PING_INTERVAL:
                    link.write("PING")
                    await _lost(link, PONG_TIMEOUT)
                    if link.silent_s >= PING_INTERVAL + PONG_TIMEOUT:  # else it was heard since
                        raise TimeoutError(f"no answer to a PING within {PONG_TIMEOUT} s")
        finally:
            link.close()

    def _take(self, answer: list[Any]) -> None:
        match answer:
            case ["message", channel, text]:
                self._on_message(channel, text)
            case ["subscribe", *_]:
                self._confirmed += 1
                if self._confirmed == len(self._channels):
                    self.is_up = True
                    self._on_ready()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning("subscription.forbidden", extra={"channel": self._channels[0], "error": str(error)})


async def _lost(link: Listener, timeout: float) -> None:
    """Wait for so many s, and raise why the link was lost if it is."""
    await asyncio.wait([link.lost], timeout=timeout)
    if link.lost.done():
        raise link.lost.result()
