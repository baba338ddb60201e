"""`ctx.run`: an agent's own way to have a task done by another agent of its pool, through the client library."""

from typing import Any

import agentpool.client.redis_backend  # noqa: F401 (imported before the fork, so that all workers share its pages)
from agentpool.client import RedisClient
from agentpool.store import Store

__all__ = ["RunByType"]


class RunByType:
    """Opens a client on the worker's connections at the first use."""

    def __init__(self, store: Store, pool: str) -> None:
        self._store, self._pool = store, pool
        self._client: RedisClient | None = None

    async def __call__(self, tenant: str, agent_type: Any, input: Any, *, timeout: float | None = None) -> Any:
        """Run a task by type for a tenant and return its result."""
        if self._client is None:
            self._client = RedisClient(self._store)
        return await self._client.pool(self._pool).run(agent_type, input, tenant=tenant, timeout=timeout)
