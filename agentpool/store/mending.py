"""Mending what does not fit together: each script finds out by itself what is so, so any may be called at any time."""

from collections.abc import Sequence

from agentpool.store.connection import Connection

__all__ = ["PER_CALL", "Mending"]

PER_CALL = 100


class Mending:
    """Doors to repairs. Each takes any number of things, a hundred a call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def workers(self, pool: str, workers: Sequence[str]) -> None:
        """Let the indexes of free slots and states say what the workers' records say."""
        for page in _pages(workers):
            await self._connection.call("mend_workers", pool, *page)

    async def agents(self, pool: str, rows: Sequence[str]) -> None:
        """Let agents be in one place each; a row is `name place…`, `-` being those that wait."""
        for page in _pages(rows):
            await self._connection.call("mend_agents", pool, *page)

    async def tasks(self, pool: str, rows: Sequence[str]) -> None:
        """Let tasks be in one place each, or in none; a row is `id kind=where…`."""
        for page in _pages(rows):
            await self._connection.call("mend_tasks", pool, *page)

    async def tenants(self, pool: str, rows: Sequence[str]) -> None:
        """Let tenants' sets hold what is theirs; a row is `tenant kind id`."""
        for page in _pages(rows):
            await self._connection.call("mend_tenants", pool, *page)

    async def pool(self, pool: str, queues: Sequence[str]) -> None:
        """Mend turns, fences and the count of what waits; `queues` are all that have tasks or a turn, `lane:tenant`."""
        for page in _pages(queues):
            await self._connection.call("mend_turns", pool, *page)
        await self._connection.call("mend_pool", pool)

    async def list_pool(self, pool: str, *, listed: bool) -> None:
        """Let the list of pools name this one, or not."""
        redis, key = self._connection.redis, self._keys.pools()
        change = redis.sadd if listed else redis.srem
        await self._connection.repeat(lambda: change(key, pool))


def _pages(rows: Sequence[str]) -> list[Sequence[str]]:
    return [rows[start : start + PER_CALL] for start in range(0, len(rows), PER_CALL)]
