"""Whose memory has grown, as far as that can be known."""

import asyncio
from collections.abc import Callable

import pytest
from pool.sample import Controlled, Counting, config, controlled, hold, steps
from support.wait import wait_until

from agentpool import Context
from agentpool.pool import AgentPool, PoolConfig, memory


class Process:
    """The process, as far as the pool is told."""

    mb = 500.0


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    it = Process()

    async def recent(age_max: float) -> float:
        return it.mb

    monkeypatch.setattr(memory, "recent_process_memory_mb", recent)
    return it


def limited(**changes: object) -> PoolConfig:
    return config(**{"max_size": 3, "max_memory_mb": 100, "recycle_jitter": 0, "max_cpu_percent": None, **changes})


async def test_cpu_and_memory_are_measured_and_make_an_agent_due() -> None:
    class Hungry(Counting):
        async def run(self, ctx: Context, input: int) -> int:
            self.number += sum(range(300_000)) and input
            return self.number

        def memory_mb(self) -> float:
            return float(self.number + 7)

    async with AgentPool(Hungry, config(max_size=1, max_memory_mb=50)) as pool, pool.acquire() as lease:
        await lease.run(30)
        await pool._upkeep.look_once()
        assert lease.facts().cpu_s > 0.0005
        assert lease.facts().memory_mb == 30, "its baseline is what it had when it was ready"
        await lease.run(30)
        await pool._upkeep.look_once()
        pool.release(lease)
        await wait_until(lambda: pool.metrics().recycles == 1)
        await pool._upkeep.look_once()
        assert pool.agents()[0].memory_mb == 0, "what it took along is the baseline of the next"


async def test_the_share_of_a_core_is_that_of_a_second_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AgentPool(Counting, config(max_cpu_percent=50)) as pool, pool.acquire() as lease:
        await pool._upkeep.look_once()
        assert lease.facts().cpu_percent is None
        pool._core.members[lease.agent_id].instance.meter.cpu_s += 3.0
        pool._upkeep._measured -= 4.0
        await pool._upkeep.look_once()
        assert lease.facts().cpu_percent == pytest.approx(75, abs=5)
        assert pool._core.members[lease.agent_id].due


async def test_growth_is_of_the_agent_that_alone_was_at_work(process: Process) -> None:
    async with AgentPool(controlled(), limited()) as pool:
        first, second = await hold(pool, 2)
        await pool._upkeep.look_once()
        await first.run(1)
        process.mb += 60
        await pool._upkeep.look_once()
        assert (first.facts().memory_mb, second.facts().memory_mb) == (60, None)
        await asyncio.gather(first.run(1), second.run(1))
        process.mb += 10
        await pool._upkeep.look_once()
        assert (first.facts().memory_mb, second.facts().memory_mb) == (60, None), "of whom, is not known"
        await first.run(1)
        process.mb += 50
        await pool._upkeep.look_once()
        assert pool._core.members[first.agent_id].due == "110 MB over its baseline"
        assert not pool._core.members[second.agent_id].due


async def test_growth_is_of_nobody_while_another_pool_has_agents(process: Process) -> None:
    async with AgentPool(controlled(), limited()) as pool, AgentPool(controlled(), limited()) as other:
        lease, _ = await pool.acquire(), await other.acquire()
        await pool._upkeep.look_once()
        await lease.run(1)
        process.mb += 150
        await pool._upkeep.look_once()
        assert lease.facts().memory_mb is None
        assert not pool._core.members[lease.agent_id].due, "two agents may have 200 MB"
        process.mb += 60
        await pool._upkeep.look_once()
        assert "process grew by 210 MB" in pool._core.members[lease.agent_id].due


async def test_growth_of_the_process_replaces_each_agent_once_most_requests_first(process: Process) -> None:
    agent = controlled()
    async with AgentPool(agent, limited()) as pool:
        leases = await hold(pool, 3)
        ids = [lease.agent_id for lease in leases]
        for lease, runs in zip(leases, (2, 3, 1), strict=True):
            for _ in range(runs):
                await lease.run(1)
            pool.release(lease)
        await pool._upkeep.look_once()
        replaced: list[str] = []
        pool.subscribe(lambda event: replaced.append(event.agent_id) if event.target == "recycling" else None)
        process.mb += 310
        for count in (1, 2, 3):
            await pool._upkeep.look_once()
            await wait_until(lambda count=count: pool.metrics().recycles == count)  # type: ignore[misc]
            await steps()
        assert replaced == [ids[1], ids[0], ids[2]]
        for _ in range(4):
            await pool._upkeep.look_once()
            await steps()
        assert len(replaced) == 3, "nobody is replaced twice for the same growth"
        process.mb += 310
        await pool._upkeep.look_once()
        await wait_until(lambda: len(replaced) == 4)


async def test_it_stops_when_the_process_has_shrunk(process: Process) -> None:
    async with AgentPool(controlled(), limited(min_size=3)) as pool:
        await pool.warm()
        await pool._upkeep.look_once()
        process.mb += 310
        await pool._upkeep.look_once()
        await wait_until(lambda: pool.metrics().recycles == 1)
        process.mb -= 300
        for _ in range(3):
            await pool._upkeep.look_once()
            await steps(30)
        assert pool.metrics().recycles == 1


async def test_what_more_agents_need_is_the_baseline(process: Process) -> None:
    async with AgentPool(controlled(), limited()) as pool, pool.acquire():
        await pool._upkeep.look_once()
        async with pool.acquire(), pool.acquire():
            process.mb += 900
            await pool._upkeep.look_once()
            await pool._upkeep.look_once()
            assert not pool._recycler.under_way


async def test_an_agent_that_cannot_tell_is_no_failure(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    def memory_mb(self: Controlled) -> float:
        raise ZeroDivisionError

    async with AgentPool(controlled(memory_mb=memory_mb), config()) as pool, pool.acquire() as lease:
        await pool._upkeep.look_once()
        assert await lease.run(1) == 1
        assert "agent.memory_failed" in caplog.text


async def test_many_pools_read_the_memory_of_the_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    def read() -> float:
        nonlocal reads
        reads += 1
        return 5.0

    monkeypatch.setattr(memory, "process_memory_mb", read)
    monkeypatch.setattr(memory, "_read", (-1e9, None))
    ask: Callable[[float], object] = memory.recent_process_memory_mb
    assert [await ask(60), await ask(60)] == [5.0, 5.0]  # type: ignore[misc]
    assert reads == 1
    assert await memory.recent_process_memory_mb(-1) == 5.0
    assert reads == 2


def test_the_memory_of_this_process() -> None:
    assert (memory.process_memory_mb() or 0) > 5
