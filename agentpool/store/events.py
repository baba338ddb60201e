"""A pool's event stream, read once or followed."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec
from redis.exceptions import RedisError

from agentpool.errors import RedisUnavailable
from agentpool.protocol.events import Event
from agentpool.store.connection import Connection, SyncConnection, translate

__all__ = ["Events", "add_event"]

log = logging.getLogger(__name__)


class Events:
    """Doors to events."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def add(self, pool: str, type: str, *, agent_id: str = "", process_id: str = "", detail: str = "") -> None:
        """Add an event that goes with no change of state; changes note theirs in their scripts. It is passed over where
        the server takes no writes: what goes on for all that must not end with it.
        """
        redis, key = self._connection.redis, self._keys.events(pool)
        at = await self._connection.now_ms()
        fields = {"type": type, "at": at, "agent_id": agent_id, "process_id": process_id, "detail": detail}
        try:
            await self._connection.repeat(lambda: redis.xadd(key, fields, maxlen=10_000))
        except RedisUnavailable as error:
            log.warning("event.not_kept", extra={"event_type": type, "error": str(error)})

    async def read(self, pool: str, limit: int = 200) -> list[Event]:
        """Return the latest events, oldest first."""
        key = self._keys.events(pool)
        rows = await self._connection.repeat(lambda: self._connection.redis.xrevrange(key, count=limit))
        return [_event(pool, row) for row in reversed(rows)]

    async def follow(self, pools: Iterable[str], interval: float = 0.2) -> AsyncGenerator[Event, None]:
        """Yield events of the pools from now on, as they come; looks every `interval` s."""
        last = {pool: await self._after(pool, None) for pool in pools}
        while True:
            for pool, after in last.items():
                for row in await self._after(pool, after):
                    last[pool] = [row]
                    yield _event(pool, row)
            await asyncio.sleep(interval)

    async def _after(self, pool: str, seen: list[Any] | None) -> list[Any]:
        """Return the rows after the last of `seen`; with None the latest row, as where to begin."""
        redis, key = self._connection.redis, self._keys.events(pool)
        if seen is None:
            return list(await self._connection.repeat(lambda: redis.xrevrange(key, count=1)))
        start = f"({seen[-1][0]}" if seen else "-"
        return list(await self._connection.repeat(lambda: redis.xrange(key, min=start, count=500)))


def add_event(
    connection: SyncConnection, pool: str, type: str, *, agent_id: str = "", process_id: str = "", detail: str = ""
) -> None:
    """Add an event from a thread without a loop; raises `RedisUnavailable`."""
    redis, key = connection.redis, connection.keys.events(pool)
    try:
        seconds, microseconds = redis.time()
        at = seconds * 1000 + microseconds // 1000
        fields = {"type": type, "at": at, "agent_id": agent_id, "process_id": process_id, "detail": detail}
        redis.xadd(key, fields, maxlen=10_000)
    except (RedisError, OSError) as error:
        raise translate(error, connection.url) from None


def _event(pool: str, row: tuple[str, dict[str, Any]]) -> Event:
    id, fields = row
    return msgspec.convert({"id": id, "pool_name": pool, **fields}, Event, strict=False)
