"""The audit of executions in Redis: a stream of batches, drained to files by the leader."""

from collections.abc import Sequence
from typing import Any

from agentpool.store.connection import Connection

__all__ = ["Audit"]

ENTRIES_PER_CALL = 100


class Audit:
    """Doors to the audit."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def read(self, pool: str, after: str = "-") -> list[tuple[str, str]]:
        """Return the next entries after that id, oldest first, at most 100: (id, lines of JSON)."""
        key, redis = self._keys.audit(pool), self._connection.redis
        start = after if after == "-" else f"({after}"
        rows: Sequence[Any] = await self._connection.repeat(lambda: redis.xrange(key, start, "+", ENTRIES_PER_CALL))
        return [(id, fields.get("lines", "")) for id, fields in rows]

    async def trim(self, pool: str, through: str) -> None:
        """Forget the entries up to and with that id; what came later stays."""
        key, redis = self._keys.audit(pool), self._connection.redis
        milliseconds, _, number = through.partition("-")
        least = f"{milliseconds}-{int(number) + 1}"
        await self._connection.repeat(lambda: redis.xtrim(key, minid=least, approximate=False))
