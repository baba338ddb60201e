"""SAQ: jobs on a list, their results read with one MGET of all that are missing."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import orjson
import uvloop
from saq.job import Job
from saq.queue.redis import RedisQueue

from bench.tasks.measuring import SLOTS, WORKERS, AsyncSystem

PACKAGES = ("saq", "redis")
CHUNK = 1000
"""Of a `map`, which reads all of its missing jobs at each look."""
POLL_S = 0.3

uvloop.install()


async def length(context: dict[str, Any], *, input: str) -> int:
    return len(input)


def _queue() -> RedisQueue:
    return RedisQueue.from_url(os.environ["BENCH_REDIS_URL"], name="bench", dump=orjson.dumps, load=orjson.loads)


def settings() -> dict[str, Any]:
    # A sweep takes jobs that were popped a moment ago for lost ones, and its default is one each minute.
    return {"queue": _queue(), "functions": [length], "concurrency": SLOTS, "timers": {"sweep": 600}}


def worker_commands() -> list[list[str]]:
    return [["saq", "bench.tasks.peers.saq.settings", "--workers", str(WORKERS), "--quiet"]]


class Peer(AsyncSystem):
    async def open(self) -> None:
        self._queue = _queue()
        await self._queue.connect()
        while len((await self._queue.info())["workers"]) < WORKERS:  # else their first sweep meets the first job
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self._queue.disconnect()

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        chunks = [inputs[first : first + CHUNK] for first in range(0, len(inputs), CHUNK)]
        done = await asyncio.gather(*(self._map(chunk) for chunk in chunks))
        return [result for results in done for result in results]

    async def _map(self, chunk: Sequence[str]) -> list[int]:
        words = [{"input": input} for input in chunk]
        results: list[int] = await self._queue.map("length", words, poll_interval=POLL_S, timeout=None, retries=3)
        return results

    async def submit(self, input: str) -> Job | None:
        return await self._queue.enqueue("length", input=input, retries=3)

    async def results(self, handles: Sequence[Job]) -> list[int]:
        # As `map` does it: `Job.refresh` subscribes too late for a job that ends meanwhile, and then waits for ever.
        missing, done = {job.key for job in handles}, []
        while missing:
            for job in await self._queue.jobs(list(missing)):
                if job and job.completed:
                    missing.remove(job.key)
                    done.append(job.result)
            await asyncio.sleep(POLL_S)
        return done

    async def call(self, input: str) -> int:
        return int(await self._queue.apply("length", input=input, poll_interval=0.001))
