"""Dramatiq: acknowledged messages, a blocking pop for each result; functions, as a thread waits for each coroutine."""

import os
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.tasks.measuring import SLOTS, WORKERS, ThreadedSystem

PACKAGES = ("dramatiq", "redis")
TIMEOUT_MS = 120_000

_url = os.environ["BENCH_REDIS_URL"]
_broker = RedisBroker(url=_url, middleware=[Results(backend=RedisBackend(url=_url), store_results=True)])
dramatiq.set_broker(_broker)


@dramatiq.actor(actor_name="length")
def length(input: str) -> int:
    return len(input)


def worker_commands() -> list[list[str]]:
    options = ["--processes", str(WORKERS), "--threads", str(SLOTS)]
    return [["dramatiq", "bench.tasks.peers.dramatiq", *options, "--skip-logging"]]


class Peer(ThreadedSystem):
    def close(self) -> None:
        _broker.close()

    def bulk(self, inputs: Sequence[str]) -> list[int]:
        group = dramatiq.group([length.message(input) for input in inputs]).run()
        return list(group.get_results(block=True, timeout=TIMEOUT_MS))

    def submit(self, input: str) -> dramatiq.Message[int]:
        return length.send(input)

    def result(self, handle: dramatiq.Message[int]) -> int:
        return handle.get_result(block=True, timeout=TIMEOUT_MS)
