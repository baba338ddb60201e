"""The subscription to this worker's channel, on a connection of its own.

A dead connection looks like a quiet one, so the listener pings and wants an answer in time. Every new subscription is
followed by a resync, as anything may have been missed. Where the user may not subscribe, the beats do everything.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from agentpool.clock import monotonic
from agentpool.protocol.commands import Command, decode_command
from agentpool_worker.place import WorkPlace

__all__ = ["Listener"]

log = structlog.get_logger("worker")

PING_INTERVAL = 15.0
PONG_TIMEOUT = 5.0
RETRY_DELAY_MAX = 1.0
FORBIDDEN_DELAY = 30.0


class Listener:
    """`on_command(command)` for each message; `on_subscribed()` after each new subscription."""

    def __init__(
        self, place: WorkPlace, *, on_command: Callable[[Command], None], on_subscribed: Callable[[], None]
    ) -> None:
        self._place, self._on_command, self._on_subscribed = place, on_command, on_subscribed
        self._channel = place.store.keys.worker_channel(place.worker_id)
        self._redis: Any = redis.asyncio.Redis.from_url(
            place.settings.redis_url,
            decode_responses=True,
            protocol=2,  # its subscriptions answer a ping with a message
            socket_connect_timeout=place.settings.connect_timeout,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        self._warned = False

    async def run(self) -> None:
        """Stay subscribed."""
        delay = 0.05
        while True:
            began = monotonic()
            try:
                await self._listen()
            except NoPermissionError as error:
                self._warn(str(error))
                await asyncio.sleep(FORBIDDEN_DELAY)
                continue
            except (RedisError, OSError, TimeoutError) as error:
                log.info("redis.unavailable", doing="listen", error=str(error))
            delay = 0.05 if monotonic() - began > PING_INTERVAL else min(delay * 2, RETRY_DELAY_MAX)
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)

    async def _listen(self) -> None:
        timeout = self._place.settings.connect_timeout + self._place.settings.command_timeout
        async with self._redis.pubsub() as pubsub:
            async with asyncio.timeout(timeout):
                await pubsub.subscribe(self._channel)
            while True:
                message = await pubsub.get_message(timeout=PING_INTERVAL)
                if message is None:
                    async with asyncio.timeout(PONG_TIMEOUT):
                        await self._ping(pubsub)
                else:
                    self._take(message)

    async def _ping(self, pubsub: Any) -> None:
        await pubsub.ping()
        while True:
            message = await pubsub.get_message(timeout=None)
            if message and message["type"] == "pong":
                return
            if message:
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "subscribe":
                self._on_subscribed()
            case "message":
                self._decode(message["data"])

    def _decode(self, text: str) -> None:
        try:
            command = decode_command(text)
        except msgspec.DecodeError as error:
            log.warning("inbox.unreadable", error=str(error))
        else:
            self._on_command(command)

    def _warn(self, error: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("inbox.forbidden", channel=self._channel, error=error, instead="commands come with the beats")
