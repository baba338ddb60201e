"""How soon a task runs under a load that does not wait: tasks come at random moments, whatever became of the others.

A task's time counts from the moment at which it was to be handed in, so a client, a queue or a worker that falls behind
is in the figure, as is the event loop's timer, which wakes the client up to a millisecond late. What the load itself
costs is kept small, as it comes from the same cores: moments and tenants are chosen before, no garbage is looked for
meanwhile, and results, which say when a task ran, are read when the load is over.
"""

import asyncio
import gc
import math
import random
import time

import uvloop

from agentpool.client import Pool, TaskHandle, connect
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
    given, tenants = inputs(100), [random.choice(TENANTS) for _ in range(1000)]
    moments = [time.time_ns() + 10_000_000]
    while moments[-1] - moments[0] < seconds * 1e9:
        moments.append(moments[-1] + int(random.expovariate(rate) * 1e9))
    submits: list[asyncio.Task[TaskHandle]] = []
    gc.disable()
    for number, moment in enumerate(moments):
        while (left := moment - time.time_ns()) > 0:
            await asyncio.sleep(math.ceil(left / 1e6) / 1e3)  # less would not let the loop rest
        submit = pool.submit(Started, given[number % 100], tenant=tenants[number % 1000])
        submits.append(asyncio.create_task(submit))
    handles = await asyncio.gather(*submits)
    gc.enable()
    starts = await asyncio.gather(*(handle.result() for handle in handles))
    return [(start - moment) / 1e6 for start, moment in zip(starts, moments, strict=True)]
