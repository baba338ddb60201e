"""Where the state of a pool is kept: a file, or a key in Redis. Both hold the same bytes and change them as a whole."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from agentpool.errors import RedisUnavailable
from agentpool.pool.errors import StateRefused

__all__ = ["FileStorage", "RedisStorage", "Storage"]


class Storage(Protocol):
    """Holds one document. `save` replaces it as a whole or leaves it as it was; `str()` names it in messages."""

    async def save(self, data: bytes) -> None:
        """Keep `data` in the place of what was there."""

    async def load(self) -> bytes | None:
        """Return what was saved last, or None."""


class FileStorage:
    """A file, readable by its owner alone; written beside, synced and renamed, so that a crash leaves old or new."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    async def save(self, data: bytes) -> None:
        """Replace the file, in a thread."""
        await asyncio.to_thread(_write, self.path, data)

    async def load(self) -> bytes | None:
        """Read the file, in a thread."""
        return await asyncio.to_thread(_read, self.path)


class RedisStorage:
    """A string key. `client` is a `store.Connection`, or a redis-py asynchronous client of the caller.

    Raises `RedisUnavailable` when Redis does not answer within `timeout` s or refuses.
    """

    def __init__(self, client: Any, key: str, *, timeout: float = 5.0) -> None:
        self._repeat = getattr(client, "repeat", None)
        self._redis = getattr(client, "redis", client)
        self.key, self.timeout = key, timeout

    def __str__(self) -> str:
        return f'Redis key "{self.key}"'

    async def save(self, data: bytes) -> None:
        """Set the key; a repeat does the same again."""
        await self._call(lambda: self._redis.set(self.key, data))

    async def load(self) -> bytes | None:
        """Get the key; raises `StateRefused` when it holds something else than text."""
        try:
            value = await self._call(lambda: self._redis.get(self.key))
        except UnicodeDecodeError as error:  # by a client that decodes what it reads
            raise StateRefused(str(self), f"it is damaged: {error.reason}") from None
        return value.encode() if isinstance(value, str) else value

    async def _call(self, once: Callable[[], Awaitable[Any]]) -> Any:
        if self._repeat:
            return await self._repeat(once, self.timeout)
        from redis.exceptions import RedisError  # here, as a pool that keeps its state elsewhere needs no Redis

        try:
            async with asyncio.timeout(self.timeout):
                return await once()
        except (RedisError, OSError) as error:  # a TimeoutError is an OSError
            text = str(error) or f"no answer within {self.timeout:g} s"
            raise RedisUnavailable(
                f"{self} cannot be reached: {text}. Is Redis running, is the key a string?"
            ) from None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name may be gone after a power cut
    finally:
        os.close(folder)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
