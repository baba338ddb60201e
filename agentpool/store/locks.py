"""Leadership and locks, with fencing tokens.

A token is `<fence> <holder>`. Scripts that act for the holder compare it with the lock itself, so a holder that was
paused past its lease is refused inside the script, whatever it believes.
"""

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from agentpool.store.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Lead", "Locks"]


class Lead(msgspec.Struct, frozen=True):
    """What a master's turn at leading a pool came to. `token` is empty for a follower."""

    token: str
    leader: str
    newly: bool = False
    run: str = ""
    """The id of the server's run; '' where the user may not read it."""
    lease_ms: int = 0
    """For a follower: how long the leader's lease lasts unless it is renewed."""


class Locks:
    """Doors to locks of a pool: `leader` and `placement`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lead(self, pool: str, master: str, *, lease_ms: int, gap_ms: int, hold_ms: int) -> Lead:
        """Lead the pool if nobody else does, or keep leading it."""
        answer = await self._connection.call("lead_pool", pool, master, lease_ms, gap_ms, hold_ms)
        match answer:
            case ["leads", token, newly, run]:
                return Lead(token, master, newly == "1", run)
            case _:
                return Lead("", answer[1].partition(" ")[2], lease_ms=max(0, int(answer[2])), run=answer[3])

    async def leader(self, pool: str) -> str:
        """Return the master that leads the pool now, or ''."""
        key = self._connection.keys.leader_lock(pool)
        token = await self._connection.repeat(lambda: self._connection.redis.get(key))
        return str(token or "").partition(" ")[2]

    async def take(self, pool: str, lock: str, holder: str, *, lease_ms: int) -> str | None:
        """Take or extend a lock; returns its token, or None while another holds it."""
        answer = await self._connection.call("take_lock", pool, lock, holder, lease_ms)
        return str(answer[1]) if answer[0] == "taken" else None

    async def release(self, pool: str, lock: str, token: str) -> bool:
        """Give a lock back; tells whether it was still held."""
        answer = await self._connection.call("release_lock", pool, lock, token)
        return bool(answer[0] == "ok")

    @asynccontextmanager
    async def placement(self, pool: str, holder: str, *, lease_ms: int = 5000) -> "AsyncIterator[str | None]":
        """Hold the placement lock for a block; yields its token, or None when another holds it."""
        token = await self.take(pool, "placement", holder, lease_ms=lease_ms)
        try:
            yield token
        finally:
            if token:
                await self.release(pool, "placement", token)
