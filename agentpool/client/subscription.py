"""One channel, subscribed to on a connection of its own, again and again until stopped.

Nothing may depend on it: a server that is away, or that forbids the subscription, only means that messages do not
come. `is_up` tells whether they do.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError

from agentpool.store import Connection

__all__ = ["Subscription"]

SILENCE_S = 5.0
"""After this long without a message the server is asked for a sign of life, and has as long to give it."""
CONNECT_TIMEOUT_S = 5.0
DELAY_MIN_S, DELAY_MAX_S = 0.05, 5.0


class Subscription:
    """Calls `on_up()` after each (re)subscription, and `on_message(text)` for each message."""

    def __init__(
        self,
        connection: Connection,
        channel: str,
        *,
        on_up: Callable[[], None],
        on_message: Callable[[str], None],
    ) -> None:
        self.is_up = False
        self._redis: Any = redis.asyncio.Redis.from_url(
            connection.url,
            decode_responses=True,
            protocol=2,  # its subscriptions answer a ping with a message
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        self._channel = channel
        self._on_up, self._on_message = on_up, on_message
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to subscribe."""
        self._loop = asyncio.create_task(self._run(), name=f"subscription {self._channel}")

    async def stop(self) -> None:
        """End the subscription; may be called twice."""
        loop, self._loop = self._loop, None
        if loop:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop
        await self._redis.aclose()

    async def _run(self) -> None:
        delay = DELAY_MIN_S
        while True:
            try:
                await self._subscribe_once()
            except (RedisError, OSError):
                delay = DELAY_MIN_S if self.is_up else min(delay * 2, DELAY_MAX_S)
            finally:
                self.is_up = False
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)

    async def _subscribe_once(self) -> None:
        """Subscribe and pass messages on until the connection breaks, which raises."""
        pubsub = self._redis.pubsub()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await pubsub.subscribe(self._channel)
            asked = False
            while True:
                message = await pubsub.get_message(timeout=SILENCE_S)
                if message is None and asked:
                    raise ConnectionError("the subscription is silent")
                asked = message is None
                if message is None:
                    await pubsub.ping()
                else:
                    self._handle(message)
        finally:
            await pubsub.aclose()

    def _handle(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "subscribe":
                self.is_up = True
                self._on_up()
            case "message":
                self._on_message(message["data"])
