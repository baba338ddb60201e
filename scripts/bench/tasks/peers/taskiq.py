"""taskiq: tasks in a Redis stream, acknowledged once their result is saved; results are polled for."""

import os
from collections.abc import Sequence

from taskiq import AsyncTaskiqTask
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench.tasks.measuring import SLOTS, WORKERS, AsyncSystem

PACKAGES = ("taskiq", "taskiq-redis", "redis")
CONNECTIONS = 50
POLL_S = 0.2

_url = os.environ["BENCH_REDIS_URL"]
_serializer = ORJSONSerializer()
_results = RedisAsyncResultBackend(
    _url, result_ex_time=3600, max_connection_pool_size=CONNECTIONS, serializer=_serializer, timeout=None
)
broker = (
    RedisStreamBroker(_url, consumer_id="0", max_connection_pool_size=CONNECTIONS, timeout=None)
    .with_result_backend(_results)
    .with_serializer(_serializer)
)


@broker.task(task_name="length")
async def length(input: str) -> int:
    return len(input)


def worker_commands() -> list[list[str]]:
    options = ["--workers", str(WORKERS), "--max-async-tasks", str(SLOTS), "--max-prefetch", str(SLOTS)]
    return [["taskiq", "worker", "bench.tasks.peers.taskiq:broker", *options, "--no-parse", "--log-level", "ERROR"]]


class Peer(AsyncSystem):
    async def open(self) -> None:
        await broker.startup()

    async def close(self) -> None:
        await broker.shutdown()

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        return await self.one_by_one(inputs)  # it has no form for many

    async def submit(self, input: str) -> AsyncTaskiqTask[int]:
        return await length.kiq(input)

    async def result(self, handle: AsyncTaskiqTask[int]) -> int:
        return (await handle.wait_result(check_interval=POLL_S)).return_value

    async def call(self, input: str) -> int:
        return (await (await length.kiq(input)).wait_result(check_interval=0.001)).return_value
