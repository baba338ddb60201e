"""`ctx.run`: an agent's own way to have a task done by another agent of its pool, through the client library."""

from typing import Any

import agentpool.client.redis_backend  # noqa: F401 (imported before the fork, so that all workers share its pages)
from agentpool.agent import Context
from agentpool.client import RedisClient
from agentpool.client.tasks import run_nested
from agentpool_worker.place import WorkPlace

__all__ = ["RunByType"]


class RunByType:
    """Opens a client on the worker's connections at the first use."""

    def __init__(self, place: WorkPlace) -> None:
        self._place = place
        self._client: RedisClient | None = None

    async def __call__(self, context: Context, agent_type: Any, input: Any, *, timeout: float | None = None) -> Any:
        """Run a task by type for the tenant of a context and return its result; its task lends its slot meanwhile."""
        if self._client is None:
            self._client = RedisClient(self._place.store)
        self._place.waits += 1
        try:
            return await run_nested(self._client.backend.run, context, agent_type, input, timeout=timeout)
        finally:
            self._place.waits -= 1
