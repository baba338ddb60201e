"""Real Redis servers for tests, run through the product's own `EmbeddedServer`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from agentpool.config import RedisSettings
from agentpool.redis_server import EmbeddedServer

__all__ = ["flush", "start_server", "throw_away_server"]


def start_server(data_dir: Path) -> EmbeddedServer:
    """Start a server that writes its append-only file but leaves it to the kernel when it reaches the disk."""
    server = EmbeddedServer(data_dir, RedisSettings(appendfsync="no"))
    server.start()
    return server


@contextmanager
def throw_away_server() -> Iterator[EmbeddedServer]:
    """Run a server for the block, on a Unix socket; it ends with the block, and its data with it.

    `server.url` is for `agentpool.connect` and redis-py. `server.stop()` and `server.start()` let it go and come back
    with its data, as after a restart.
    """
    with tempfile.TemporaryDirectory(prefix="agentpool-") as folder:
        server = start_server(Path(folder))
        try:
            yield server
        finally:
            server.stop()


def flush(url: str) -> None:
    """Empty the whole server."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
