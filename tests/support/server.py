"""Real Redis servers for tests, run through the product's own EmbeddedServer."""

from contextlib import suppress
from pathlib import Path
from typing import Literal

import redis

from agentpool.config import RedisSettings
from agentpool.errors import ServerError
from agentpool.redis_server import EmbeddedServer, find_binary

__all__ = ["available_binaries", "flush", "start_server"]


def start_server(data_dir: Path) -> EmbeddedServer:
    """Start a server that writes its append-only file but leaves it to the kernel when it reaches the disk."""
    server = EmbeddedServer(data_dir, RedisSettings(appendfsync="no"))
    server.start()
    return server


def flush(url: str) -> None:
    """Empty the whole server."""
    with redis.Redis.from_url(url) as client:
        client.flushall()


def available_binaries() -> list[Literal["system", "bundled"]]:
    """The settings of `binary` that find a server on this machine; at least one of them must."""
    found: list[Literal["system", "bundled"]] = []
    for choice in ("system", "bundled"):
        with suppress(ServerError):
            find_binary(choice)
            found.append(choice)
    if not found:
        find_binary("auto")  # raises, with advice
    return found
