"""A worker's `Registry`: what becomes of its agents stands in Redis. Every call is repeated until Redis takes it."""

from collections.abc import Sequence

from agentpool.errors import UnknownAgent
from agentpool_worker.place import WorkPlace

__all__ = ["RedisRegistry"]


class RedisRegistry:
    """See `agentpool.hosting.Registry`."""

    def __init__(self, place: WorkPlace) -> None:
        self._place, self._agents = place, place.store.agents
        self._who = (place.pool, place.worker_id)

    async def confirm(self, name: str, incarnation: int) -> int | None:
        return await self._place.insist("confirm", lambda: self._agents.confirm(*self._who, name, incarnation))

    async def fail(self, name: str, incarnation: int, *, failures: int, error: str, final: bool) -> bool:
        return await self._place.insist(
            "fail",
            lambda: self._agents.fail(*self._who, name, incarnation, failures=failures, error=error, final=final),
        )

    async def snapshot(self, name: str) -> str:
        return await self._place.insist("snapshot", lambda: self._agents.snapshot(self._place.pool, name))

    async def beat(self, names: Sequence[str]) -> None:
        await self._place.insist("heartbeats of agents", lambda: self._agents.beat(*self._who, names))

    async def retire_idle(self, agent_id: str) -> bool:
        return await self._place.insist("idle time", lambda: self._end_if_idle(agent_id))

    async def idle_for(self, agent_id: str) -> float:
        return max(0.0, await self._place.insist("idle time", lambda: self._read_idle(agent_id)))

    async def _end_if_idle(self, agent_id: str) -> bool:
        try:
            record = await self._agents.get(agent_id)
        except UnknownAgent:
            return True
        return await self._agents.retire_idle(agent_id, record.last_used_at)

    async def _read_idle(self, agent_id: str) -> float:
        try:
            record = await self._agents.get(agent_id)
        except UnknownAgent:
            return 0.0
        return (await self._place.store.connection.now_ms() - record.last_used_at) / 1000
