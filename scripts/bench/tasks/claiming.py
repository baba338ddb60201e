"""Whether a claim costs more when more waits: the script's time in the server, one tenant against many.

Servers are filled, then asked in turns, in batches; what was claimed is finished and handed in anew between them,
which is not measured. All that is known here of how workers claim is in `Claimer`.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvloop

from agentpool.client import Client, connect
from agentpool.protocol.tasks import ClaimedTask
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.tasks import EndedTask
from agentpool.store.workers import register_worker
from bench.figures import extent, median, show
from bench.running import POOL, BenchError
from bench.tasks.agents import Length
from bench.tasks.filling import fill, pool_server
from bench.tasks.measuring import SLOTS, inputs
from bench.tasks.sizes import Sizes

__all__ = ["measure"]

ROOM = SLOTS
BATCH = 20
LEASE_MS = 3_600_000


class Claimer:
    """A worker that exists in Redis alone, with room for all that a batch of claims takes."""

    def __init__(self, url: str, client: Client) -> None:
        self.store = Store.open(url)
        self._url, self._pool = url, client.pool(POOL)
        self._number = 0

    async def register(self) -> None:
        """Order the worker as a leading master would, and register it."""
        lead = await self.store.locks.lead(POOL, "bench", lease_ms=LEASE_MS, gap_ms=LEASE_MS, hold_ms=0)
        async with self.store.locks.placement(POOL, "bench") as placement:
            ordered = await self.store.workers.reserve(
                POOL, [("w", "secret")], leader=lead.token, placement=placement or "", master="bench", max_starting=1
            )
        if not ordered:
            raise BenchError("no worker could be ordered")
        connection = SyncConnection(self._url, timeout=10)
        try:
            register_worker(connection, POOL, "w", "secret", ROOM * BATCH, {"pid": 1})
        finally:
            connection.close()

    async def claim_once(self) -> tuple[ClaimedTask, ...]:
        """Claim as many tasks as a claim may."""
        self._number += 1
        answer = await self.store.tasks.exchange(POOL, "w", self._number, room=ROOM)
        if answer is None or len(answer.tasks) != ROOM:
            raise BenchError(f"a claim brought {len(answer.tasks) if answer else 'no'} tasks instead of {ROOM}")
        return answer.tasks

    async def give_back(self, tasks: Sequence[ClaimedTask]) -> None:
        """Finish what was claimed, and hand in as many for the same tenants."""
        for first in range(0, len(tasks), 50):
            self._number += 1
            ended = [EndedTask(task.id, "", "done", b'{"status":"succeeded"}') for task in tasks[first : first + 50]]
            await self.store.tasks.exchange(POOL, "w", self._number, room=-1, ended=ended)
        for tenant, count in Counter(task.header.tenant for task in tasks).items():
            await self._pool.submit_many(Length, inputs(count), tenant=tenant)

    async def batch(self) -> float:
        """Return the server's own time for one claim, in µs."""
        before = await self._script_time()
        tasks = [task for _ in range(BATCH) for task in await self.claim_once()]
        after = await self._script_time()
        await self.give_back(tasks)
        return (after[0] - before[0]) / (after[1] - before[1])

    async def _script_time(self) -> tuple[int, int]:
        """Return the µs that scripts took so far, and how many there were."""
        stats: dict[str, Any] = await self.store.connection.redis.info("commandstats")
        rows = [row for name, row in stats.items() if name in ("cmdstat_evalsha", "cmdstat_fcall")]
        return sum(int(row["usec"]) for row in rows), sum(int(row["calls"]) for row in rows)


def measure(sizes: Sizes) -> tuple[tuple[float, ...], str]:
    """Return how the script's time grows with what waits.

    The note has also the time with as few tasks, but of ten tenants: what lies between the first and that is due to the
    way from tenant to tenant, the rest to how much waits.
    """
    tenants = [f"tenant{number}" for number in range(sizes.many_tenants)]
    with pool_server() as one, pool_server() as some, pool_server() as many:
        fill(one, tenants[:1], sizes.few_tasks)
        fill(some, tenants[:ROOM], sizes.few_tasks // ROOM)
        fill(many, tenants, sizes.tasks_each)
        runs = uvloop.run(_measure([one, some, many], sizes))
    ratios = [run[2] / run[0] for run in runs]
    times = show([median(run[i] for run in runs) for i in range(3)], "µs")
    return (median(ratios),), f"{times} for {ROOM} tasks, in the middle few of {ROOM} tenants; {extent(ratios, '×')}"


async def _measure(urls: Sequence[str], sizes: Sizes) -> list[list[float]]:
    async with contextlib.AsyncExitStack() as stack:
        claimers = [await stack.enter_async_context(_claimer(url)) for url in urls]
        await _run(claimers, BATCH)
        return [await _run(claimers, sizes.claims) for _ in range(sizes.rounds)]


async def _run(claimers: Sequence[Claimer], claims: int) -> list[float]:
    """Return the time of a claim in µs on each server, the median of its batches."""
    batches = [[await claimer.batch() for claimer in claimers] for _ in range(max(1, claims // BATCH))]
    return [median(times) for times in zip(*batches, strict=True)]


@contextlib.asynccontextmanager
async def _claimer(url: str) -> AsyncIterator[Claimer]:
    async with connect(url) as client:
        claimer = Claimer(url, client)
        try:
            await claimer.register()
            yield claimer
        finally:
            await claimer.store.close()
