"""Celery: late acknowledgement, results told by publication; a pool of threads in each of two nodes."""

import os
from collections.abc import Sequence

from celery import Celery, group

from bench.tasks.measuring import SLOTS, WORKERS, ThreadedSystem

PACKAGES = ("celery", "kombu", "redis")
TIMEOUT_S = 120

_url = os.environ["BENCH_REDIS_URL"].replace("unix://", "redis+socket://")
app = Celery("bench", broker=_url, backend=_url)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=10,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    result_expires=3600,
)


@app.task(name="length")
def length(input: str) -> int:
    return len(input)


def worker_commands() -> list[list[str]]:
    command = ["celery", "--app", "bench.tasks.peers.celery", "--quiet", "worker", "--loglevel", "ERROR"]
    options = ["--pool", "threads", "--concurrency", str(SLOTS), "--without-gossip", "--without-mingle"]
    return [[*command, *options, "--hostname", f"bench{number}@localhost"] for number in range(WORKERS)]


class Peer(ThreadedSystem):
    def bulk(self, inputs: Sequence[str]) -> list[int]:
        results: list[int] = group(length.s(input) for input in inputs).apply_async().get(timeout=TIMEOUT_S)
        return results

    def one_by_one(self, inputs: Sequence[str]) -> list[int]:
        # Its subscription to results is for one thread: a hundred that wait there hinder each other.
        handles = list(self._threads.map(length.delay, inputs))
        return [handle.get(timeout=TIMEOUT_S) for handle in handles]

    def call(self, input: str) -> int:
        return int(length.delay(input).get(timeout=TIMEOUT_S))
