"""What a zygote does before it forks: import the agent classes, and run the code that every worker will run."""

import asyncio
import ipaddress
import sys
from contextlib import suppress
from urllib.parse import urlsplit

import redis.asyncio
import uvloop

from agentpool.errors import AgentPoolError, RedisUnavailable
from agentpool.hosting.loading import load_types, make_importable
from agentpool.protocol.zygote import WorkerSettings
from agentpool.store import Connection, Store
from agentpool.store.connection import SyncConnection
from agentpool.store.scripts import library
from agentpool.store.workers import beat_worker

__all__ = ["warm"]

NOBODY = "warm-up"
WARM_TIMEOUT = 2.0


def warm(settings: WorkerSettings) -> None:
    """Exercise what a worker does first, so that its code and caches are shared pages; nothing stays open.

    Only towards a socket path or an IP address: looking a host name up starts threads.
    """
    library()
    if not _is_address(settings.redis_url):
        return
    with suppress(AgentPoolError, redis.RedisError, OSError, TimeoutError):
        _warm_thread(settings)
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(asyncio.wait_for(_warm_loop(settings), WARM_TIMEOUT))
        finally:
            loop.close()


def _is_address(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    try:
        ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return False
    return True


def _warm_thread(settings: WorkerSettings) -> None:
    connection = SyncConnection(settings.redis_url, namespace=settings.namespace, timeout=WARM_TIMEOUT)
    try:
        # A worker that does not exist is told so, and nothing is written.
        beat_worker(connection, settings.pool, NOBODY, loop_lag_ms=0, memory_bytes=None, cpu_percent=0.0)
    finally:
        connection.close()


async def _warm_loop(settings: WorkerSettings) -> None:
    connection = Connection(
        settings.redis_url, namespace=settings.namespace, connect_timeout=WARM_TIMEOUT, command_timeout=WARM_TIMEOUT
    )
    try:
        store = Store(connection)
        await store.workers.view(settings.pool, NOBODY)
        with suppress(RedisUnavailable):
            await store.tasks.exchange(settings.pool, NOBODY, 1, room=0)
            await store.agents.confirm(settings.pool, NOBODY, NOBODY, 0)
        async with connection.dedicated() as client, client.pubsub() as pubsub:
            await pubsub.subscribe(store.keys.worker_channel(NOBODY))
            await pubsub.get_message(timeout=WARM_TIMEOUT)
    finally:
        await connection.close()


def main(app_dir: str, *specs: str) -> None:
    """Import agent classes as a zygote would, for `agentpool-master check`; the last line of stderr is the fault."""
    make_importable(app_dir)
    load_types(specs)


if __name__ == "__main__":
    main(*sys.argv[1:])
