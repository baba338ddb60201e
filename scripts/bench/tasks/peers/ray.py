"""Ray: two actors with threads, which are faster there than coroutines, over Ray's own transport and object store."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

import ray

from bench.tasks.measuring import SLOTS, WORKERS, AsyncSystem

PACKAGES = ("ray",)
STORE_BYTES = 200_000_000


class Length:
    def run(self, input: str) -> int:
        return len(input)


def worker_commands() -> list[list[str]]:
    return []  # `init` starts what Ray needs


class Peer(AsyncSystem):
    async def open(self) -> None:
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=tempfile.gettempdir(),
        )
        actor = ray.remote(Length).options(max_concurrency=SLOTS, max_restarts=-1, max_task_retries=-1)
        self._actors = [actor.remote() for _ in range(WORKERS)]
        self._sent = 0

    async def close(self) -> None:
        ray.shutdown()

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        results: list[int] = ray.get([self._send(input) for input in inputs])
        return results

    async def submit(self, input: str) -> Any:
        return self._send(input)

    async def result(self, handle: Any) -> int:
        result: int = await handle
        return result

    async def call(self, input: str) -> int:
        result: int = ray.get(self._send(input))
        return result

    def _send(self, input: str) -> Any:
        self._sent += 1
        return self._actors[self._sent % WORKERS].run.remote(input)
