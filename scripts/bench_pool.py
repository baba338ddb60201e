"""Figures of the in-process pool, against an asyncio.Queue and a general-purpose pool in the same run.

All run on uvloop, like the workers. The peer is `generic-connection-pool` from PyPI; it is measured when it is
installed, and else said to be absent.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop
from bench.figures import Figure, median, table

from agentpool import Agent, Context
from agentpool.pool import AgentPool, PoolConfig

ROUNDS, TASKS, AGENTS = 20_000, 1000, 50


class Quick(Agent):
    """Does nothing."""

    async def run(self, ctx: Context, input: int) -> int:
        return input


class Slow(Quick):
    """Takes its time to start."""

    seconds = 2.0

    async def start(self, ctx: Context) -> None:
        await asyncio.sleep(self.seconds)


async def uncontended(once: Callable[[], Awaitable[None]], rounds: int) -> float:
    """Median time of one pair in µs; timed in batches of 10, as the clock itself costs."""
    times = []
    for _ in range(rounds // 10):
        began = time.perf_counter()
        for _ in range(10):
            await once()
        times.append((time.perf_counter() - began) / 10 * 1e6)
    return median(times)


async def contended(user: Callable[[], Awaitable[None]], tasks: int, rounds: int) -> float:
    """Pairs a second of many tasks; each gives way while it holds, so that nearly every acquire waits."""

    async def many() -> None:
        for _ in range(rounds):
            await user()

    began = time.perf_counter()
    await asyncio.gather(*(many() for _ in range(tasks)))
    return tasks * rounds / (time.perf_counter() - began)


async def measure_pool(rounds: int) -> tuple[float, float, float]:
    """Return µs with `async with`, µs with acquire and release, pairs a second."""
    config = PoolConfig(min_size=AGENTS, max_size=AGENTS, max_waiting=TASKS)
    async with AgentPool(Quick, config) as pool:
        await pool.warm()

        async def entered() -> None:
            async with pool.acquire():
                pass

        async def plain() -> None:
            pool.release(await pool.acquire())

        async def user() -> None:
            async with pool.acquire():
                await asyncio.sleep(0)

        return (
            await uncontended(entered, rounds),
            await uncontended(plain, rounds),
            await contended(user, TASKS, max(1, rounds // 200)),
        )


async def measure_queue(rounds: int) -> tuple[float, float]:
    """Return the same of the least that a pool can be: a queue of objects."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    for number in range(AGENTS):
        queue.put_nowait(number)

    async def pair() -> None:
        await queue.put(await queue.get())

    async def user() -> None:
        number = await queue.get()
        await asyncio.sleep(0)
        await queue.put(number)

    return await uncontended(pair, rounds), await contended(user, TASKS, max(1, rounds // 200))


async def measure_peer(rounds: int) -> tuple[float, float] | None:
    """Return the same of the peer, or None."""
    try:
        from generic_connection_pool.asyncio import BaseConnectionManager, ConnectionPool
    except ImportError:
        return None

    class Manager(BaseConnectionManager):  # type: ignore[misc]
        async def create(self, endpoint: str) -> object:
            return object()

        async def dispose(self, endpoint: str, conn: object) -> None:
            pass

    peer = ConnectionPool(Manager(), max_size=AGENTS, total_max_size=AGENTS, background_collector=False)

    async def pair() -> None:
        async with peer.connection(endpoint="x"):
            pass

    async def user() -> None:
        async with peer.connection(endpoint="x"):
            await asyncio.sleep(0)

    figures = await uncontended(pair, rounds // 10), await contended(user, TASKS, max(1, rounds // 2000))
    await peer.close()
    return figures


async def measure_start(seconds: float) -> tuple[float, float]:
    """Return the time to an agent in s, cold and warm."""
    Slow.seconds = seconds
    async with AgentPool(Slow, PoolConfig(min_size=0)) as pool:
        began = time.perf_counter()
        pool.release(await pool.acquire())
        cold = time.perf_counter() - began
        began = time.perf_counter()
        pool.release(await pool.acquire())
        return cold, time.perf_counter() - began


async def measure(rounds: int, start: float) -> list[Figure]:
    """Return all figures."""
    queue, queue_rate = await measure_queue(rounds)
    entered, plain, rate = await measure_pool(rounds)
    peer = await measure_peer(rounds)
    cold, warm = await measure_start(start)
    beside = f"{peer[0]:.1f} µs" if peer else "absent"
    peer_rate = f"{peer[1]:,.0f} /s" if peer else "absent"
    bound = (min(5.0, 3 * queue),)
    floor = f"queue get+put {queue:.2f} µs; generic-connection-pool {beside}"
    return [
        Figure(what="async with acquire()", unit="µs", values=(entered,), must=bound, aim=bound, floor=floor),
        Figure(what="acquire() + release()", unit="µs", values=(plain,), must=bound, aim=bound, floor=floor),
        Figure(
            what=f"a pair, {TASKS} tasks on {AGENTS} agents",
            unit="µs",
            values=(1e6 / rate,),
            must=(10.0,),
            aim=(10.0,),
            floor=f"{rate:,.0f} /s; queue {queue_rate:,.0f} /s; generic-connection-pool {peer_rate}",
        ),
        Figure(
            what=f"acquire, warm, start takes {start:g} s",
            unit="ms",
            values=(warm * 1e3,),
            must=(100.0,),
            aim=(100.0,),
            floor=f"cold start {cold:.2f} s",
        ),
    ]


def main() -> int:
    """Measure, print the table, and fail when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="numbers so small that they mean nothing")
    quick = parser.parse_args().quick
    figures = uvloop.run(measure(200 if quick else ROUNDS, 0.05 if quick else 2.0))
    print(table(figures))
    return 0 if quick or all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
