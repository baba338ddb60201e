"""What every part of a worker knows: who the worker is, its settings, its agent types, its store."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import structlog

from agentpool.agent import AgentType
from agentpool.errors import RedisUnavailable, UnknownAgentType
from agentpool.protocol.zygote import WorkerSettings
from agentpool.store import Store

__all__ = ["WorkPlace"]

log = structlog.get_logger("worker")

T = TypeVar("T")

INSIST_DELAY_MAX = 2.0


class WorkPlace:
    """Shared by the parts of one worker. `run_by_type(tenant, type, input, timeout=…)` is what `ctx.run` calls."""

    def __init__(
        self,
        settings: WorkerSettings,
        worker_id: str,
        types: Mapping[str, AgentType],
        store: Store,
        run_by_type: Callable[..., Awaitable[Any]],
    ) -> None:
        self.settings, self.worker_id, self.types, self.store = settings, worker_id, types, store
        self.pool = settings.pool
        self.run_by_type = run_by_type

    def type(self, name: str) -> AgentType:
        """Return a preloaded type; nothing is ever imported because a message names it."""
        try:
            return self.types[name]
        except KeyError:
            raise UnknownAgentType(name, sorted(self.types)) from None

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
