"""How long a worker takes from the decision to start it, one by one and a hundred at once.

The moments come from the server: it is told to publish what happens to the sorted set of starting workers, which an
order enters (`reserve_workers`) and a registration leaves (`register_worker`). So they are known to the microsecond,
while the records have milliseconds.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from agentpool.client import Client, connect
from bench.figures import Figure, median, quantile, show
from bench.floors import helper_times
from bench.running import POOL, RunningMaster, wait_for
from bench.sizes import Sizes

__all__ = ["measure"]


def measure(sizes: Sizes) -> list[Figure]:
    """Return the figures of single starts and of many at once."""
    return [*_measure_single(sizes), *_measure_crowd(sizes)]


# -- one by one -----------------------------------------------------------------------------------------------------


def _measure_single(sizes: Sizes) -> list[Figure]:
    # A worker has one slot, and the first is taken: each further agent needs a worker of its own.
    settings = {"min_workers": 1, "max_workers": sizes.starts + 8, "agents_per_worker": 1}
    with RunningMaster(**settings) as master:
        starts = asyncio.run(_start_each(master, sizes))
        floors = _floors(master.url, sizes.floor_rounds)
    registered = [(start["registered"] - start["ordered"]) * 1000 for start in starts]
    running = [(start["running"] - start["ordered"]) * 1000 for start in starts]
    asked = [(start["running"] - start["asked"]) * 1000 for start in starts]
    return [
        Figure(
            what="worker ordered → registered and able to take an agent, median",
            unit="ms",
            values=(median(registered),),
            must=(50,),
            aim=(20,),
            floor=floors,
        ),
        Figure(
            what="the same → its first agent runs, median / p99",
            unit="ms",
            values=(median(running), quantile(running, 0.99)),
        ),
        Figure(
            what="spawn with no room, request → running on a new worker, p50 / p99",
            unit="ms",
            values=(median(asked), quantile(asked, 0.99)),
        ),
    ]


def _floors(url: str, rounds: int) -> str:
    times = {
        "bare fork": helper_times("fork", rounds),
        "exec of `python -c pass`": helper_times("execute", rounds),
        "warm forkserver to first PING": helper_times("forkserver", rounds, url),
    }
    return "; ".join(f"{what} {show((median(values),), 'ms')}" for what, values in times.items())


async def _start_each(master: RunningMaster, sizes: Sizes) -> list[dict[str, float]]:
    async with connect(master.url) as client, _moments(master, client) as moments:
        await client.pool(POOL).spawn("Idle")
        return [await _start_one(client, moments, sizes.pause_s) for _ in range(sizes.starts)]


async def _start_one(client: Client, moments: dict[str, float], pause_s: float) -> dict[str, float]:
    await asyncio.sleep(pause_s)
    moments.clear()
    asked = time.perf_counter()
    await client.pool(POOL).spawn("Idle")
    running = time.perf_counter()
    await asyncio.sleep(0.01)
    return {"asked": asked, "ordered": moments["zadd"], "registered": moments["zrem"], "running": running}


@contextlib.asynccontextmanager
async def _moments(master: RunningMaster, client: Client) -> AsyncIterator[dict[str, float]]:
    """Yield a dict that always has the moment of the last order and of the last registration."""
    moments: dict[str, float] = {}
    master.redis.config_set("notify-keyspace-events", "Kz")
    async with client.store.connection.redis.pubsub() as pubsub:
        await pubsub.subscribe(f"__keyspace@0__:{client.store.keys.starting(POOL)}")
        listening = asyncio.create_task(_note(pubsub, moments))
        try:
            yield moments
        finally:
            listening.cancel()


async def _note(pubsub: Any, moments: dict[str, float]) -> None:
    async for message in pubsub.listen():
        moments[message["data"]] = time.perf_counter()


# -- many at once ---------------------------------------------------------------------------------------------------


def _measure_crowd(sizes: Sizes) -> list[Figure]:
    with RunningMaster(min_workers=0, max_workers=sizes.crowd, agents_per_worker=10) as master:
        times = asyncio.run(_start_crowds(master, sizes))
    return [
        Figure(
            what=f"{sizes.crowd} workers started, all ready, median",
            unit="s",
            values=(median(times),),
            must=(5,),
            aim=(2.5,),
            floor=f"of {len(times)}: {show((min(times), max(times)), 's')}",
        )
    ]


async def _start_crowds(master: RunningMaster, sizes: Sizes) -> list[float]:
    async with connect(master.url) as client:
        return [await _start_crowd(master, client, sizes) for _ in range(sizes.runs)]


async def _start_crowd(master: RunningMaster, client: Client, sizes: Sizes) -> float:
    pool, count = client.pool(POOL), sizes.crowd
    began = time.perf_counter()
    await pool.scale(count)
    wait_for(lambda: master.ready_count() == count, f"{count} workers are ready")
    took = time.perf_counter() - began
    await pool.scale(0)
    wait_for(lambda: master.is_steady(0), "all workers have left")
    await asyncio.sleep(2 * sizes.pause_s)
    return took
