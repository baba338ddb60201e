"""RQ: jobs in many are sent together; workers that do not fork, each with one job at a time, as RQ knows no slots."""

import os
from collections.abc import Sequence

from redis import Redis
from rq import Queue
from rq.job import Job

from bench.tasks.measuring import WORKERS, ThreadedSystem

PACKAGES = ("rq", "redis")
CHUNK = 500
TIMEOUT_S = 120
TASK = "bench.tasks.peers.rq.length"


def length(input: str) -> int:
    return len(input)


def worker_commands() -> list[list[str]]:
    options = ["--url", os.environ["BENCH_REDIS_URL"], "--worker-class", "rq.worker.SimpleWorker", "--quiet"]
    return [["rq", "worker-pool", "bench", "--num-workers", str(WORKERS), *options]]


class Peer(ThreadedSystem):
    def open(self) -> None:
        self._redis = Redis.from_url(os.environ["BENCH_REDIS_URL"])
        self._queue = Queue("bench", connection=self._redis)

    def close(self) -> None:
        self._redis.close()

    def bulk(self, inputs: Sequence[str]) -> list[int]:
        jobs: list[Job] = []
        for first in range(0, len(inputs), CHUNK):
            given = inputs[first : first + CHUNK]
            jobs += self._queue.enqueue_many([Queue.prepare_data(TASK, (input,)) for input in given])
        return [self.result(job) for job in jobs]

    def submit(self, input: str) -> Job:
        return self._queue.enqueue(TASK, input)

    def result(self, handle: Job) -> int:
        result = handle.latest_result(timeout=TIMEOUT_S)
        value: int = result.return_value
        return value
