"""Warm agents, recycling, state that outlives the pool, figures, events, threads."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pool.sample import check, check_closed, config, controlled, steps
from support.wait import wait_until

from agentpool import Agent, Context
from agentpool.errors import PoolClosed
from agentpool.pool import (
    POOLED_MOVES,
    AgentPool,
    FileStorage,
    PooledState,
    RedisStorage,
    SpawnCircuitOpen,
    StateRefused,
    SyncPool,
    run_sync,
)
from agentpool.store.connection import Connection


class Counting(Agent):
    """Keeps a number, which a recycle takes along."""

    async def start(self, ctx: Context) -> None:
        self.number = 0

    async def run(self, ctx: Context, input: int) -> int:
        self.number += input
        return self.number

    async def snapshot(self, ctx: Context) -> int:
        return self.number

    async def restore(self, ctx: Context, state: Any) -> None:
        self.number = state


def test_the_table_is_made_of_the_agents_own() -> None:
    assert POOLED_MOVES[PooledState.TERMINATED] == frozenset()
    assert POOLED_MOVES[PooledState.RECYCLING] == {PooledState.IDLE, PooledState.TERMINATED}


# -- warm -------------------------------------------------------------------------------------------------------


async def test_min_size_are_kept_ready_and_the_excess_is_drained() -> None:
    agent = controlled()
    async with AgentPool(agent, config(min_size=2, max_size=6)) as pool:
        assert await pool.warm() == 2
        leases = [await pool.acquire() for _ in range(3)]
        assert await pool.warm() == 2
        for lease in leases:
            pool.release(lease)
        assert pool.drain_excess() == 3
        assert pool.metrics().idle == 2
        assert pool.metrics().scale_direction == "DOWN"
        assert pool.evict_idle()
        assert pool.metrics().terminated == 4
        await wait_until(lambda: len(agent.alive) == pool.metrics().total)
    await check_closed(pool, agent)


async def test_idle_agents_above_min_size_end_after_a_time() -> None:
    async with AgentPool(controlled(), config(max_size=3, idle_timeout=0.05)) as pool:
        for lease in [await pool.acquire() for _ in range(3)]:
            pool.release(lease)
        await wait_until(lambda: pool.metrics().total == 0)


async def test_warm_says_why_nothing_starts() -> None:
    agent = controlled(start_errors=[OSError("no key")] * 9)
    async with AgentPool(agent, config(min_size=1, breaker_backoff=9, breaker_backoff_max=9)) as pool:
        with pytest.raises(SpawnCircuitOpen, match="no key"):
            await pool.warm()
        with pytest.raises(SpawnCircuitOpen):
            await pool.acquire(timeout=5)


async def test_a_background_that_raises_has_the_agent_replaced() -> None:
    async def background(self: object, ctx: Context) -> None:
        await fails.wait()
        raise OSError

    fails = asyncio.Event()
    async with AgentPool(controlled(background=background), config(min_size=1)) as pool:
        await pool.warm()
        fails.set()
        await wait_until(lambda: pool.metrics().terminated >= 1)


# -- recycle ----------------------------------------------------------------------------------------------------


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


async def test_cpu_and_memory_are_measured_and_make_an_agent_due() -> None:
    class Hungry(Counting):
        async def run(self, ctx: Context, input: int) -> int:
            self.number += sum(range(300_000)) and input
            return self.number

        def memory_mb(self) -> float:
            return float(self.number)

    async with AgentPool(Hungry, config(max_size=1, max_memory_mb=50)) as pool:
        await pool._upkeep.look_once()
        async with pool.acquire() as lease:
            await pool._upkeep.look_once()
            await lease.run(100)
            await pool._upkeep.look_once()
            assert lease.facts().cpu_s > 0.0005
            assert lease.facts().memory_mb == 100
        await wait_until(lambda: pool.metrics().recycles == 1)


# -- state ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def redis_storage(redis_url: str) -> AsyncIterator[RedisStorage]:
    connection = Connection(redis_url)
    yield RedisStorage(connection, "saved-pool")
    await connection.close()


async def there_and_back(storage: Any) -> None:
    async with AgentPool(Counting, config()) as pool:
        assert await pool.load_state(storage) == 0
        async with pool.acquire() as first, pool.acquire() as second:
            await first.run(3)
            await second.run(4)
            ids = {first.agent_id: 4, second.agent_id: 5}
            saving = asyncio.create_task(pool.save_state(storage, timeout=5))
            await steps()
            assert not saving.done()
        report = await saving
        assert (set(report.saved), report.busy) == (set(ids), ())
    async with AgentPool(Counting, config(min_size=1)) as pool:
        assert await pool.load_state(storage) == 2
        async with pool.acquire() as first, pool.acquire() as second:
            assert {lease.agent_id: await lease.run(1) for lease in (first, second)} == ids
            assert first.facts().requests == 2
        check(pool)


async def test_state_in_a_file(tmp_path: Path) -> None:
    await there_and_back(FileStorage(tmp_path / "deep" / "pool.json"))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["pool.json"]


async def test_state_in_redis(redis_storage: RedisStorage) -> None:
    await there_and_back(redis_storage)


async def test_a_state_that_cannot_be_used_is_refused_unless_told_to_begin_without(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "pool.json")
    async with AgentPool(Counting, config()) as pool:
        pool.release(await pool.acquire())
        await pool.save_state(storage)
        good = json.loads(storage.path.read_text())
        for change, message in (
            ({"version": 0}, "older"),
            ({"version": 99}, "newer"),
            ({"format": "else"}, "no "),
            ({"sha256": "0" * 64}, "checksum"),
            (None, "damaged"),
        ):
            text = json.dumps(good | change, separators=(",", ":")) if change else storage.path.read_text()[:-20]
            storage.path.write_text(text)
            with pytest.raises(StateRefused, match=message):
                await pool.load_state(storage)
            assert await pool.load_state(storage, start_clean=True) == 0
    async with AgentPool(controlled(), config()) as other:
        storage.path.write_text(json.dumps(good, separators=(",", ":")))
        with pytest.raises(StateRefused, match="type Counting"):
            await other.load_state(storage)


async def test_an_agent_in_use_for_too_long_is_saved_without_its_snapshot(tmp_path: Path) -> None:
    async with AgentPool(Counting, config()) as pool, pool.acquire() as lease:
        report = await pool.save_state(FileStorage(tmp_path / "pool.json"), timeout=0.01)
        assert report.busy == (lease.agent_id,)


# -- events, threads --------------------------------------------------------------------------------------------


async def test_changes_are_told() -> None:
    async with AgentPool(controlled(), config()) as pool:
        events = pool.events()
        first = asyncio.ensure_future(anext(events))
        await steps(2)
        async with pool.acquire():
            pass
        seen = [await first, await anext(events), await anext(events), await anext(events)]
        assert [str(event.target) for event in seen] == ["starting", "idle", "active", "idle"]
        await events.aclose()  # type: ignore[attr-defined]


def test_threads_share_a_pool() -> None:
    with SyncPool(Counting, config(max_size=3)) as pool:
        with pool.acquire(timeout=5) as agent:
            assert agent.run(1) == 1
        threads = [threading.Thread(target=lambda: [pool.run(1) for _ in range(20)]) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.metrics().requests == 101
    with pytest.raises(PoolClosed):
        pool.run(1)
    pool.close()


def test_run_sync_needs_no_loop() -> None:
    async def use(number: int) -> int:
        async with AgentPool(Counting, config()) as pool:
            return await pool.run(number)

    assert run_sync(use, 4) == 4
