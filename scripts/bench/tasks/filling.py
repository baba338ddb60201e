"""Servers on which many tasks wait: of a pool that a real master applied and left, so that nobody takes them."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import redis
import uvloop

from agentpool.client import Pool, connect
from bench.running import POOL, scratch_server
from bench.tasks.agents import Length
from bench.tasks.measuring import inputs
from bench.tasks.own import own_master

__all__ = ["fill", "pool_server"]

PER_CALL = 100
CALLERS = 4
MANY = 10_000_000
"""Bounds that are looked at, and not reached."""


@contextlib.contextmanager
def pool_server() -> Iterator[str]:
    """Run a server with the pool `bench` and no worker, and give its URL. Nothing is written to disk."""
    with scratch_server() as url:
        with redis.Redis.from_url(url) as server:
            server.config_set("appendonly", "no")
        with own_master(url, min_workers=0, max_queued=MANY, max_queued_pool=MANY, tenant_running=MANY):
            pass
        yield url


def fill(url: str, tenants: Sequence[str], tasks_each: int) -> None:
    """Queue so many tasks of each tenant."""
    uvloop.run(_fill(url, tenants, tasks_each))


async def _fill(url: str, tenants: Sequence[str], tasks_each: int) -> None:
    given = inputs(PER_CALL)
    async with connect(url) as client:
        pool = client.pool(POOL)
        await asyncio.gather(
            *(_fill_some(pool, tenants[first::CALLERS], tasks_each, given) for first in range(CALLERS))
        )


async def _fill_some(pool: Pool, tenants: Sequence[str], tasks_each: int, given: Sequence[str]) -> None:
    for tenant in tenants:
        for first in range(0, tasks_each, PER_CALL):
            await pool.submit_many(Length, given[: min(PER_CALL, tasks_each - first)], tenant=tenant)
