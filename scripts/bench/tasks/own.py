"""agentpool, used as its peers are: tasks by type, of eight tenants."""

import asyncio
from collections.abc import Sequence

from agentpool.client import TaskHandle, connect
from bench.running import POOL, RunningMaster
from bench.tasks.agents import Length
from bench.tasks.measuring import SLOTS, WORKERS, AsyncSystem

__all__ = ["TENANTS", "Own", "own_master"]

TENANTS = [f"tenant{number}" for number in range(8)]
AGENTS = ["bench.tasks.agents:Length", "bench.tasks.agents:Started", "bench.tasks.agents:Announcing"]


def own_master(redis_url: str = "", **settings: object) -> RunningMaster:
    """Return a master with as many workers and slots as the peers have; it is to be entered."""
    # Limits are checked; at their default of 5 tasks at once they would leave most slots of a lone tenant empty.
    size = {"min_workers": WORKERS, "max_workers": WORKERS, "agents_per_worker": SLOTS, "tenant_running": 200}
    return RunningMaster(redis_url=redis_url, agents=AGENTS, **{**size, **settings})


class Own(AsyncSystem):
    """A client of a master that runs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turn = 0

    async def open(self) -> None:
        self._client = connect(self._url)
        await self._client.open()
        self._pool = self._client.pool(POOL)

    async def close(self) -> None:
        await self._client.close()

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        parts = await asyncio.gather(
            *(self._map(tenant, inputs[first :: len(TENANTS)]) for first, tenant in enumerate(TENANTS))
        )
        return [result for part in parts for result in part]

    async def _map(self, tenant: str, inputs: Sequence[str]) -> list[int]:
        return [result async for result in self._pool.map(Length, inputs, ordered=False, tenant=tenant)]

    async def submit(self, input: str) -> TaskHandle:
        return await self._pool.submit(Length, input, tenant=self._next_tenant())

    async def result(self, handle: TaskHandle) -> int:
        result: int = await handle.result()
        return result

    async def results(self, handles: Sequence[TaskHandle]) -> list[int]:
        return list(await asyncio.gather(*(handle.result() for handle in handles)))

    async def call(self, input: str) -> int:
        result: int = await self._pool.run(Length, input, tenant=self._next_tenant())
        return result

    def _next_tenant(self) -> str:
        self._turn += 1
        return TENANTS[self._turn % len(TENANTS)]
