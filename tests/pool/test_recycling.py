"""Agents that have done enough are replaced without a gap, a few at a time."""

import asyncio

import pytest
from pool.sample import Controlled, Counting, check, check_closed, config, controlled, snapshot, steps
from support.wait import wait_until

from agentpool import Context
from agentpool.pool import AgentPool, PoolConfig


async def test_a_recycle_keeps_id_and_snapshot() -> None:
    async with AgentPool(Counting, config(max_size=1, recycle_threshold=2, recycle_jitter=0)) as pool:
        ids = set()
        for expected in range(1, 7):
            async with pool.acquire(timeout=5) as lease:
                assert await lease.run(1) == expected
                ids.add(lease.agent_id)
            await steps(20)
            check(pool)
        await wait_until(lambda: pool.metrics().recycles == 3)
        assert len(ids) == 1
        assert pool.transitions()["recycling → idle"] == 3


async def test_the_old_agent_serves_until_the_new_one_is_ready() -> None:
    agent = controlled()
    async with AgentPool(agent, config(max_size=1, recycle_threshold=1)) as pool:
        async with pool.acquire() as lease:
            agent.start_gate = asyncio.Event()
            await lease.run(1)
        await steps()
        async with pool.acquire(timeout=0) as lease:
            assert await lease.run(1) == 2
        agent.start_gate.set()
        await wait_until(lambda: pool.metrics().recycles == 1)
        assert len(agent.alive) == 1


async def test_few_recycle_at_once() -> None:
    agent = controlled()
    pool = AgentPool(agent, config(max_size=6, recycle_threshold=1, recycles_at_once=2))
    async with pool:
        leases = [await pool.acquire() for _ in range(6)]
        agent.start_gate = asyncio.Event()
        for lease in leases:
            await lease.run(1)
            pool.release(lease)
        await steps()
        assert (len(agent.made), pool._recycler.under_way) == (8, 2)
        agent.start_gate.set()
        await wait_until(lambda: pool.metrics().recycles == 6)
        await wait_until(lambda: len(agent.alive) == 6)
    await check_closed(pool, agent)


async def test_a_successor_that_fails_leaves_the_old_one_in_service() -> None:
    agent = controlled()
    async with AgentPool(agent, config(max_size=1, recycle_threshold=1)) as pool:
        async with pool.acquire() as lease:
            agent.start_errors = [OSError()]
            await lease.run(1)
        await steps(20)
        async with pool.acquire(timeout=1) as lease:
            assert await lease.run(1) == 2
        await wait_until(lambda: pool.metrics().recycles == 1)


async def test_a_worn_out_agent_gets_a_new_id() -> None:
    async with AgentPool(Counting, config(max_size=1, recycle_threshold=1, max_recycles=0)) as pool:
        async with pool.acquire() as lease:
            first = lease.agent_id
            await lease.run(5)
        await wait_until(lambda: pool.metrics().recycles == 1)
        async with pool.acquire() as lease:
            assert lease.agent_id != first
            assert await lease.run(1) == 1


async def test_an_agent_that_breaks_while_its_successor_is_ready_does_not_use_up_the_budget() -> None:
    agent = controlled()
    async with AgentPool(agent, config(max_size=1, recycle_threshold=1, recycles_at_once=1)) as pool:
        async with pool.acquire() as lease:
            await lease.run(1)
            member = pool._core.members[lease.agent_id]
            await wait_until(lambda: member.successor)
            member.instance.break_("for the test")
        async with pool.acquire() as lease:
            await lease.run(1)
        await wait_until(lambda: pool.metrics().recycles == 1)
        await wait_until(lambda: len(agent.alive) == 1)


async def test_a_successor_that_could_not_be_used_counts_until_it_has_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def restore(self: Controlled, ctx: Context, state: int) -> None:
        raise OSError("unreadable")

    agent = controlled(snapshot=snapshot, restore=restore, stop_gate=asyncio.Event())
    changes = config(max_size=1, recycle_threshold=1, recycles_at_once=1, stop_timeout=5)
    async with AgentPool(agent, changes) as pool:
        for _ in range(3):
            async with pool.acquire(timeout=1) as lease:
                await lease.run(1)
            await steps(40)
            assert (len(agent.made), pool.metrics().recycles, pool.total) == (2, 0, 1)
        agent.stop_gate.set()
    found = [vars(record)["traceback"] for record in caplog.records if record.message == "pool.recycle_failed"]
    assert found
    assert all('raise OSError("unreadable")' in traceback for traceback in found)


async def test_an_agent_is_replaced_again_only_when_the_one_before_has_stopped() -> None:
    agent = controlled(stop_gate=asyncio.Event())
    changes = config(max_size=1, recycle_threshold=1, recycles_at_once=2, stop_timeout=5)
    async with AgentPool(agent, changes) as pool:
        for _ in range(3):
            async with pool.acquire(timeout=1) as lease:
                await lease.run(1)
            await steps(20)
            assert (len(agent.made), pool.metrics().recycles) == (2, 1)
        agent.stop_gate.set()
        await wait_until(lambda: pool.metrics().recycles == 2)


async def test_closing_does_not_wait_for_the_start_of_a_successor() -> None:
    agent = controlled()
    pool = AgentPool(agent, config(max_size=1, recycle_threshold=1))
    async with pool:
        agent.start_gate = None
        async with pool.acquire() as lease:
            agent.start_gate = asyncio.Event()
            await lease.run(1)
        await steps()
        assert len(agent.made) == 2
    await check_closed(pool, agent)


async def test_the_quota_of_each_agent_is_lower_by_10_to_25_percent() -> None:
    made = PoolConfig(recycle_threshold=1000, max_instance_age=1000, max_memory_mb=1000, max_cpu_percent=100)
    async with AgentPool(controlled(), made) as pool:
        quotas = [pool._spawner.new_quota() for _ in range(500)]
    for name in ("requests", "age", "memory_mb", "cpu_percent"):
        parts = [getattr(quota, name) / (100 if name == "cpu_percent" else 1000) for quota in quotas]
        assert 0.75 <= min(parts) < 0.77
        assert 0.88 < max(parts) <= 0.90
