"""What every part of a worker knows: who the worker is, its settings, its store, and how to insist on an answer."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from agentpool.errors import RedisUnavailable
from agentpool.protocol.zygote import WorkerSettings
from agentpool.store import Store

__all__ = ["WorkPlace"]

log = structlog.get_logger("worker")

T = TypeVar("T")

INSIST_DELAY_MAX = 1.0


class WorkPlace:
    """Shared by the parts of one worker."""

    def __init__(self, settings: WorkerSettings, worker_id: str, store: Store) -> None:
        self.settings, self.worker_id, self.store = settings, worker_id, store
        self.pool = settings.pool
        self.waits = 0
        """Tasks here that wait for tasks of their own."""

    async def insist(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call()` until Redis takes it. A worker that was given up meanwhile is ended by its heartbeat."""
        delay = 0.1
        while True:
            try:
                return await call()
            except RedisUnavailable as error:
                log.warning("redis.unavailable", doing=what, error=str(error))
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)
            delay = min(delay * 2, INSIST_DELAY_MAX)
