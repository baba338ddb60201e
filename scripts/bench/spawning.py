"""How long a spawn takes where there is room."""

import asyncio
import time

from agentpool.client import Client, connect
from bench.figures import Figure, median, quantile, spread
from bench.floors import ping_pong_times, round_trip_times
from bench.running import POOL, RunningMaster
from bench.sizes import Sizes

__all__ = ["measure"]


def measure(sizes: Sizes) -> list[Figure]:
    """Return the figures of spawns, one after the other, each ended before the next."""
    with RunningMaster(min_workers=1, max_workers=1, agents_per_worker=10) as master:
        runs, floors = asyncio.run(_measure(master.url, sizes))
    return [
        Figure(
            what="spawn on a worker with room, request → running, p50 / p99",
            unit="ms",
            values=(median(map(median, runs)), median(quantile(run, 0.99) for run in runs)),
            must=(5, 15),
            aim=(2, 6),
            floor=floors,
        )
    ]


async def _measure(url: str, sizes: Sizes) -> tuple[list[list[float]], str]:
    async with connect(url) as client:
        await _spawn_all(client, 20)
        runs = [await _spawn_all(client, sizes.spawns) for _ in range(sizes.runs)]
    scripts = await round_trip_times(url, sizes.spawns)
    pings = await ping_pong_times(url, sizes.spawns)
    return runs, f"one EVALSHA {spread(scripts, 'ms')}; pub/sub there and back {spread(pings, 'ms')}"


async def _spawn_all(client: Client, count: int) -> list[float]:
    return [await _spawn_one(client) for _ in range(count)]


async def _spawn_one(client: Client) -> float:
    began = time.perf_counter()
    agent = await client.pool(POOL).spawn("Idle")
    took = (time.perf_counter() - began) * 1000
    await agent.terminate()
    return took
