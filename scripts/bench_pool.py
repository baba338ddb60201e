"""Figures of the in-process pool, against an asyncio.Queue and a general-purpose pool in the same run.

Once on uvloop, like the workers, and once on asyncio's own loop. The peer is `generic-connection-pool` from PyPI; it is
measured when it is installed, and else said to be absent. `--profile` shows instead where a contended pair's time goes.
"""

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec
import uvloop
from bench.figures import Figure, median, table

from agentpool import Agent, Context
from agentpool.pool import AgentPool, PoolConfig

ROUNDS, TASKS, AGENTS = 20_000, 1000, 50
TIMES = 9
"""How often what many tasks do is measured, in turns with the queue. The best counts: what disturbs only adds."""


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


async def contended(user: Callable[[], Awaitable[None]], rounds: int) -> float:
    """Time of one pair in µs, of many tasks; each gives way while it holds, so that nearly every acquire waits."""

    async def many() -> None:
        for _ in range(rounds):
            await user()

    began = time.perf_counter()
    await asyncio.gather(*(many() for _ in range(TASKS)))
    return (time.perf_counter() - began) / (TASKS * rounds) * 1e6


class Measured(msgspec.Struct):
    """Times of a pair in µs: with `async with`, with acquire and release, of many tasks, of many with a timeout."""

    entered: float
    plain: float
    many: float
    timed: float
    queue: float
    queue_many: float


async def measure_pairs(rounds: int) -> Measured:
    """Measure the pool and the least that a pool can be: a queue of objects."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    for number in range(AGENTS):
        queue.put_nowait(number)
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

        async def user_with_timeout() -> None:
            async with pool.acquire(60):
                await asyncio.sleep(0)

        async def pair() -> None:
            await queue.put(await queue.get())

        async def user_of_queue() -> None:
            number = await queue.get()
            await asyncio.sleep(0)
            await queue.put(number)

        users = (user, user_with_timeout, user_of_queue)
        turns = [[await contended(it, max(1, rounds // 500)) for it in users] for _ in range(TIMES)]
        many, timed, queue_many = (min(times) for times in zip(*turns, strict=True))
        return Measured(
            entered=await uncontended(entered, rounds),
            plain=await uncontended(plain, rounds),
            many=many,
            timed=timed,
            queue=await uncontended(pair, rounds),
            queue_many=queue_many,
        )


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

    figures = await uncontended(pair, rounds // 10), await contended(user, max(1, rounds // 2000))
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


async def measure(loop: str, rounds: int, start: float) -> list[Figure]:
    """Return all figures of one kind of loop."""
    pairs = await measure_pairs(rounds)
    peer = await measure_peer(rounds)
    cold, warm = await measure_start(start)
    bound = (round(min(5.0, 3 * pairs.queue), 1),)
    floor = f"queue {pairs.queue:.2f} µs; generic-connection-pool {f'{peer[0]:.1f} µs' if peer else 'absent'}"
    crowd = f"queue {pairs.queue_many:.1f} µs; generic-connection-pool {f'{peer[1]:.1f} µs' if peer else 'absent'}"
    # On asyncio's own loop two turns, without anything done in them, take half of these 10 µs.
    must = 10.0 if loop == "uvloop" else max(10.0, round(2 * pairs.queue_many, 1))
    return [
        Figure(what=f"{loop}: async with acquire()", unit="µs", values=(pairs.entered,), must=bound, aim=bound,
               floor=floor),
        Figure(what=f"{loop}: acquire() + release()", unit="µs", values=(pairs.plain,), must=bound, aim=bound,
               floor=floor),
        Figure(what=f"{loop}: a pair, {TASKS} tasks on {AGENTS} agents", unit="µs", values=(pairs.many,),
               must=(must,), aim=(10.0,), floor=f"{1e6 / pairs.many:,.0f} /s; {crowd}"),
        Figure(what=f"{loop}: the same, each with a timeout", unit="µs", values=(pairs.timed,),
               floor=f"{1e6 / pairs.timed:,.0f} /s"),
        Figure(what=f"{loop}: acquire, warm, start takes {start:g} s", unit="ms", values=(warm * 1e3,), must=(100.0,),
               aim=(100.0,), floor=f"cold start {cold:.2f} s"),
    ]  # fmt: skip


async def crowd(rounds: int) -> None:
    """Do what is profiled."""
    async with AgentPool(Quick, PoolConfig(min_size=AGENTS, max_size=AGENTS)) as pool:
        await pool.warm()

        async def user() -> None:
            async with pool.acquire():
                await asyncio.sleep(0)

        await contended(user, rounds)


def main() -> int:
    """Measure, print the table, and fail when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="numbers so small that they mean nothing")
    parser.add_argument("--profile", action="store_true", help="show the functions in which a pair's time is spent")
    options = parser.parse_args()
    if options.profile:
        with cProfile.Profile() as profile:
            uvloop.run(crowd(50))
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        return 0
    rounds, start = (200, 0.05) if options.quick else (ROUNDS, 2.0)
    figures = [*uvloop.run(measure("uvloop", rounds, start)), *asyncio.run(measure("asyncio", rounds, start))]
    print(table(figures))
    return 0 if options.quick or all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
