"""One subscription that comes back: to a few channels, on a connection of its own.

Messages are hints, so losing some is no fault; what matters is that whoever listens learns when it may have missed
any. `on_ready` is called at every (re)subscription, after which the listener compares itself with Redis. The
connection proves itself alive by pings with a deadline of their own, because a dead peer is otherwise silent.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from agentpool.clock import monotonic

__all__ = ["Subscription"]

log = structlog.get_logger("subscription")

PING_INTERVAL = 15.0
PONG_TIMEOUT = 5.0
DELAY_MIN, DELAY_MAX = 0.05, 2.0
FORBIDDEN_DELAY = 30.0


class Subscription:
    """Calls `on_message(channel, text)` for each message, and awaits `on_ready()` whenever it (re)connected."""

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        on_message: Callable[[str, str], None],
        on_ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._url, self._channels = url, tuple(channels)
        self._on_message, self._on_ready = on_message, on_ready

    async def run(self) -> None:
        """Listen until cancelled; never ends by itself."""
        delay = DELAY_MIN
        while True:
            client: Any = redis.asyncio.Redis.from_url(
                self._url,
                decode_responses=True,
                socket_timeout=None,
                socket_connect_timeout=PONG_TIMEOUT,
                retry=Retry(NoBackoff(), 0),
            )
            try:
                async with client, client.pubsub() as pubsub:
                    await pubsub.subscribe(*self._channels)
                    delay = DELAY_MIN
                    await self._listen(pubsub)
            except NoPermissionError as error:
                log.warning("subscription.forbidden", channels=self._channels, error=str(error))
                delay = FORBIDDEN_DELAY
            except (RedisError, OSError, TimeoutError) as error:
                log.info("subscription.lost", error=str(error), retry_seconds=round(delay, 2))
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)
            delay = min(delay * 2, max(DELAY_MAX, delay))

    async def _listen(self, pubsub: Any) -> None:
        """Read until the connection fails; raises `TimeoutError` when a ping is not answered in time."""
        subscribed = False
        pinged = None
        heard = monotonic()
        while True:
            wait = PONG_TIMEOUT if pinged else max(0.01, heard + PING_INTERVAL - monotonic())
            message = await pubsub.get_message(ignore_subscribe_messages=False, timeout=wait)
            if message is None:
                if pinged and monotonic() - pinged >= PONG_TIMEOUT:
                    raise TimeoutError("no answer to a ping")
                if not pinged and monotonic() - heard >= PING_INTERVAL:
                    pinged = monotonic()
                    await pubsub.ping()
                continue
            heard, pinged = monotonic(), None
            if message["type"] == "message":
                self._on_message(message["channel"], message["data"])
            elif message["type"] == "subscribe" and not subscribed and message["data"] == len(self._channels):
                subscribed = True
                if self._on_ready:
                    await self._on_ready()
