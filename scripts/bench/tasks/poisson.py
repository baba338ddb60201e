"""How soon a task runs under a load that does not wait: tasks come at random moments, whatever became of the others.

A task's time counts from the moment at which it was to be handed in, so a client, a queue or a worker that falls behind
is in the figure. The moments are met to a millisecond, the resolution of the event loop's timers, which is in it, too.
"""

import asyncio
import random
import time

import uvloop

from agentpool.client import Pool, connect
from bench.figures import extent, median, quantile
from bench.running import POOL
from bench.tasks.agents import Started
from bench.tasks.measuring import inputs
from bench.tasks.own import TENANTS, own_master
from bench.tasks.sizes import Sizes

__all__ = ["measure"]


def measure(sizes: Sizes) -> tuple[tuple[float, ...], str]:
    """Return mean and p99 in ms from the intended moment to the agent's first line."""
    with own_master() as master:
        runs = uvloop.run(_measure(master.url, sizes))
    means = [sum(run) / len(run) for run in runs]
    note = f"{len(runs)} × {sizes.poisson_s:g} s; means {extent(means, 'ms')}"
    return (median(means), median(quantile(run, 0.99) for run in runs)), note


async def _measure(url: str, sizes: Sizes) -> list[list[float]]:
    async with connect(url) as client:
        pool = client.pool(POOL)
        await _run(pool, sizes.poisson_rate / 5, sizes.settle_s)
        runs = []
        for _ in range(sizes.rounds):
            await asyncio.sleep(sizes.settle_s)
            runs.append(await _run(pool, sizes.poisson_rate, sizes.poisson_s))
        return runs


async def _run(pool: Pool, rate: float, seconds: float) -> list[float]:
    """Return the time in ms of each task."""
    tasks: list[asyncio.Task[float]] = []
    given = inputs(100)
    due = time.time_ns() + 10_000_000
    end = due + int(seconds * 1e9)
    while due < end:
        await asyncio.sleep((due - time.time_ns()) / 1e9)
        while due <= time.time_ns():
            tasks.append(asyncio.create_task(_one(pool, given[len(tasks) % 100], due)))
            due += int(random.expovariate(rate) * 1e9)
    return list(await asyncio.gather(*tasks))


async def _one(pool: Pool, input: str, due: int) -> float:
    handle = await pool.submit(Started, input, tenant=random.choice(TENANTS))
    started: int = await handle.result()
    return (started - due) / 1e6
