"""arq: jobs in a sorted set that workers poll, as callers do for results."""

import os
from collections.abc import Sequence

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from bench.tasks.measuring import SLOTS, WORKERS, AsyncSystem

PACKAGES = ("arq", "redis")
POLL_S = 0.2

uvloop.install()


async def length(context: object, input: str) -> int:
    return len(input)


class Worker:
    functions = (length,)
    redis_settings = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])
    max_jobs = SLOTS
    poll_delay = 0.005
    queue_read_limit = 2 * SLOTS
    keep_result = 3600


def worker_commands() -> list[list[str]]:
    return [["arq", "bench.tasks.peers.arq.Worker"] for _ in range(WORKERS)]


class Peer(AsyncSystem):
    _redis: ArqRedis

    async def open(self) -> None:
        self._redis = await create_pool(Worker.redis_settings)

    async def close(self) -> None:
        await self._redis.aclose()

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        return await self.one_by_one(inputs)  # it has no form for many

    async def submit(self, input: str) -> Job | None:
        return await self._redis.enqueue_job("length", input)

    async def result(self, handle: Job) -> int:
        result: int = await handle.result(poll_delay=POLL_S)
        return result

    async def call(self, input: str) -> int:
        return int(await (await self._redis.enqueue_job("length", input)).result(poll_delay=0.001))
