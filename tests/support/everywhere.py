"""One pool with four slots, over Redis with a real worker or in this process: for tests of what both promise."""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.seeds import seed_host
from support.worker_harness import APPS, POOL, Master, mastering

from agentpool import connect
from agentpool.client import Client
from agentpool.client.client import RedisClient
from agentpool.doctor import examine
from agentpool.protocol.limits import encode_limits

__all__ = ["CAPACITY", "POOL", "app", "has_status", "one_pool"]

CAPACITY = 4
LABELS = ("gpu", "ssd")
sys.path.insert(0, str(APPS))
app: Any = importlib.import_module("everywhere_module")
sys.path.remove(str(APPS))

TENANTS = {"tenant_agents": 10, "tenant_running": 5, "tenant_tokens_per_minute": 100_000, "tenant_tokens_per_task": 800}
OTHER = {"max_pending": 2, "max_queued": 1000}
TIMES = {"batch_max_wait": 0.4, "key_ttl": 60.0}
FILE = f"""
app_dir = "{APPS}"
labels = {list(LABELS)}
[pools.{POOL}]
role_type = "dev"
agents = {[f"everywhere_module:{cls.__name__}" for cls in app.ALL]}
max_workers = 1
agents_per_worker = {CAPACITY}
max_input_bytes = 100_000
agent_stop_timeout = 0.3
boot_backoff = 0.05
boot_failures_max = 3
drain_timeout = 0.2
retry_delay = 0.05
""" + "".join(f"{name} = {value}\n" for name, value in {**TENANTS, **OTHER, **TIMES}.items())


@asynccontextmanager
async def one_pool(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Client]:
    """Yield a client of the pool, over what the parameter says; at the end nothing is left that should not be."""
    if request.param == "local":
        (folder / "agentpool.toml").write_text(FILE)
        async with connect("local://", config=folder / "agentpool.toml") as client:
            yield client
        return
    url = request.getfixturevalue("redis_url")
    async with mastering(url, folder, capacity=CAPACITY, labels=LABELS, retry_attempts=3) as master:
        await _prepare(master)
        timing = asyncio.create_task(_fire_timers(master))
        client = RedisClient(master.store)
        try:
            yield client
            assert await examine(master.store) == []
        finally:
            timing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await timing
            await client.close()


async def _prepare(master: Master) -> None:
    await master.prepare(*(cls.__name__ for cls in app.ALL), module="everywhere_module")
    limits = encode_limits({name.removeprefix("tenant_"): value for name, value in TENANTS.items()})
    times = {f"{name}_ms": int(1000 * value) for name, value in TIMES.items()}
    store = master.store
    await store.connection.redis.hset(store.keys.pool(POOL), mapping={**OTHER, **times, "tenant_limits": limits})
    await seed_host(store, "h1", LABELS, POOL)
    await master.fork()


async def _fire_timers(master: Master) -> None:
    while True:
        await master.store.tasks.fire_timers(POOL)
        await asyncio.sleep(0.02)


def has_status(task: Any, status: str) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the task of this handle has this status."""

    async def has() -> bool:
        return bool((await task.info())["status"] == status)

    return has
