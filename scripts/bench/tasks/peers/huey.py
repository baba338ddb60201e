"""Huey: tasks popped from a list, each result told by a list of its own."""

import os
from collections.abc import Sequence

from huey import RedisHuey
from huey.api import Result

from bench.tasks.measuring import SLOTS, WORKERS, ThreadedSystem

PACKAGES = ("huey", "redis")
TIMEOUT_S = 120

huey = RedisHuey("bench", url=os.environ["BENCH_REDIS_URL"], notify_result=True)


@huey.task(name="length")
def length(input: str) -> int:
    return len(input)


def worker_commands() -> list[list[str]]:
    options = ["--workers", str(SLOTS), "--worker-type", "thread", "--quiet", "--no-periodic"]
    return [["huey_consumer", "bench.tasks.peers.huey.huey", *options] for _ in range(WORKERS)]


class Peer(ThreadedSystem):
    def bulk(self, inputs: Sequence[str]) -> list[int]:
        results: list[int] = length.map(inputs).get(blocking=True, timeout=TIMEOUT_S)
        return results

    def submit(self, input: str) -> Result:
        return length(input)

    def result(self, handle: Result) -> int:
        result: int = handle.get(blocking=True, timeout=TIMEOUT_S)
        return result
