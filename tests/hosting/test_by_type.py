"""Warm agents by type: kept per type and tenant, all within one capacity."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
from support.wait import wait_until

from agentpool.agent import Agent, AgentType, Context
from agentpool.config import PoolSettings
from agentpool.hosting import HostSettings, Place
from agentpool.hosting.by_type import SPARE_POOLS, ByType
from agentpool.pool import StartFailed


class Worker(Agent):
    """Tells who it is; starts when it is let to."""

    gate: ClassVar[asyncio.Event | None] = None
    fails: ClassVar[bool] = False
    alive: ClassVar[list[str]] = []
    leaves: ClassVar[asyncio.Event | None] = None

    async def start(self, ctx: Context) -> None:
        self.tenant = ctx.tenant
        if self.gate:
            await self.gate.wait()
        if self.fails:
            raise RuntimeError("no licence found")
        self.alive.append(self.tenant)

    async def run(self, ctx: Context, input: Any) -> int:
        return id(self)

    async def stop(self, ctx: Context) -> None:
        if self.leaves:
            await self.leaves.wait()
        if self.tenant in self.alive:
            self.alive.remove(self.tenant)


class Common(Worker):
    scope = "shared"


WORKER, COMMON = AgentType(Worker), AgentType(Common)
Make = Callable[..., ByType]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "gate", None)
    monkeypatch.setattr(Worker, "fails", False)
    monkeypatch.setattr(Worker, "alive", [])
    monkeypatch.setattr(Worker, "leaves", None)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[ByType] = []

    def make(capacity: int = 2, pinned: Callable[[], int] = lambda: 0, **settings: Any) -> ByType:
        host = HostSettings.of(PoolSettings(agent_stop_timeout=0.2, **settings), "p", "w1", capacity)
        unused: Any = None
        made.append(ByType(Place(host, {}, unused, run_by_type=unused), pinned))
        return made[-1]

    yield make
    for by_type in made:
        await by_type.close()
        assert by_type.count == 0
    assert Worker.alive == []


async def use(by_type: ByType, tenant: str, type: AgentType = WORKER) -> str:
    lease = await by_type.acquire(type, tenant)
    agent_id = lease.agent_id
    by_type.release(lease)
    return agent_id


async def test_agents_stay_warm_per_tenant_or_are_shared(make: Make) -> None:
    by_type = make(capacity=4)
    first = await use(by_type, "a")
    assert await use(by_type, "a") == first
    assert await use(by_type, "b") != first
    assert await use(by_type, "a", COMMON) == await use(by_type, "b", COMMON)
    assert by_type.count == 3
    assert Worker.alive == ["a", "b", "default"]


async def test_the_agent_that_was_idle_for_longest_makes_room(make: Make) -> None:
    by_type = make(capacity=2)
    for tenant in ("a", "b", "a", "c"):
        await use(by_type, tenant)
    assert by_type.count == 2
    await wait_until(lambda: sorted(Worker.alive) == ["a", "c"])


async def test_pinned_agents_push_pooled_ones_out(make: Make) -> None:
    pinned = 0
    by_type = make(2, lambda: pinned)
    lease = await by_type.acquire(WORKER, "a")
    await use(by_type, "b")
    pinned = 1
    by_type.make_room()
    assert by_type.count == 1
    pinned = 2
    by_type.make_room()
    assert by_type.count == 1, "one that is in use stays until it is given back"
    by_type.release(lease)
    assert by_type.count == 0


async def test_an_agent_whose_task_was_cancelled_while_it_started_makes_room_too(make: Make) -> None:
    by_type = make(capacity=1)
    Worker.gate = asyncio.Event()
    asking = asyncio.create_task(by_type.acquire(WORKER, "a"))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert by_type.count == 1, "it is still being made"
    Worker.gate = None
    await use(by_type, "b")
    assert by_type.count == 1


async def test_each_task_fails_with_its_own_agents_start(make: Make) -> None:
    by_type = make(capacity=2)
    Worker.fails = True
    for _ in range(20):
        with pytest.raises(StartFailed, match="no licence found") as caught:
            await by_type.acquire(WORKER, "a")
        assert "in start" in caught.value.traceback
    Worker.fails = False
    assert await use(by_type, "a"), "no breaker holds the next one back"


async def test_a_start_that_nobody_waits_for_any_more_serves_the_next_of_its_type(make: Make) -> None:
    by_type = make(capacity=1)
    Worker.gate = asyncio.Event()
    asking = asyncio.create_task(by_type.acquire(WORKER, "a"))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    again = asyncio.create_task(use(by_type, "a"))
    await asyncio.sleep(0.01)
    Worker.gate.set()
    await again
    assert Worker.alive == ["a"], "one was made, not two"


async def test_an_agent_that_cleans_up_for_long_does_not_hold_up_the_next(make: Make) -> None:
    by_type = make(capacity=1)
    await use(by_type, "a")
    Worker.leaves = asyncio.Event()
    await use(by_type, "b")
    async with asyncio.timeout(0.15):
        await use(by_type, "a")
    Worker.leaves.set()


async def test_many_tenants_leave_no_pools_behind(make: Make) -> None:
    by_type = make(capacity=3)
    for number in range(3 * SPARE_POOLS):
        await use(by_type, f"t{number}")
    assert len(by_type._pools) <= SPARE_POOLS + 10, "those without agents, with some, and those whose agents clean up"
    assert by_type.count == 3


async def test_idle_agents_end_after_their_time(make: Make) -> None:
    by_type = make(agent_idle_timeout=0.1)
    await use(by_type, "a")
    await wait_until(lambda: by_type.count == 0 and not Worker.alive)


@pytest.mark.parametrize("bound", [{"recycle_threshold": 3}, {"requests_per_quota": 3}, {"max_instance_age": 0.2}])
async def test_agents_are_replaced_when_their_quota_is_used_up(make: Make, bound: dict[str, Any]) -> None:
    by_type = make(**bound)

    async def run() -> int:
        lease = await by_type.acquire(WORKER, "a")
        result: int = await lease.run(None)
        by_type.release(lease)
        return result

    first = await run()

    async def replaced() -> bool:
        return await run() != first

    await wait_until(replaced)
    assert by_type.count == 1


def test_no_limit_is_none() -> None:
    off = PoolSettings(recycle_threshold=0, requests_per_quota=0, max_instance_age=0, max_recycles=0, max_memory_mb=0)
    config = HostSettings.of(off, "p", "w1", 2).agents
    limits = (config.recycle_threshold, config.requests_per_quota, config.max_instance_age, config.max_recycles)
    assert limits == (None, None, None, None)
    assert (config.max_memory_mb, config.max_cpu_percent) == (None, 90.0)
