"""Places: agents kept ahead, those that clean up, and what a host of many pools may take away."""

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from pool.sample import Counting, ask, check, check_closed, config, controlled, hold, steps
from support.wait import wait_until

from agentpool.errors import PoolAtCapacity
from agentpool.pool import AgentPool, FileStorage, StartFailed


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


# -- those that clean up ----------------------------------------------------------------------------------------


async def test_a_place_is_free_only_when_stop_has_ended() -> None:
    agent = controlled(stop_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=1, stop_timeout=5)) as pool:
        pool.release(await pool.acquire())
        assert pool.evict_idle()
        waiter = ask(pool)
        await steps(30)
        assert (pool.total, pool.leaving, pool.metrics().leaving, pool.metrics().total) == (1, 1, 1, 1)
        assert (len(agent.alive), len(agent.made)) == (1, 1)
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.01)
        check(pool)
        agent.stop_gate.set()
        pool.release(await waiter)
        assert (pool.total, pool.leaving, len(agent.alive)) == (1, 0, 1)


async def test_a_stop_that_hangs_keeps_its_place_until_its_deadline() -> None:
    agent = controlled(stop_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=1, stop_timeout=0.05)) as pool:
        pool.release(await pool.acquire())
        pool.evict_idle()
        began = monotonic()
        pool.release(await pool.acquire(timeout=5))
        assert 0.04 < monotonic() - began < 2


async def test_the_line_is_bounded_also_while_all_places_are_being_left() -> None:
    agent = controlled(stop_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=1, max_waiting=1, stop_timeout=5)) as pool:
        pool.release(await pool.acquire())
        pool.evict_idle()
        waiter = ask(pool)
        await steps()
        with pytest.raises(PoolAtCapacity):
            await pool.acquire()
        agent.stop_gate.set()
        await waiter


async def test_warm_waits_for_a_place() -> None:
    agent = controlled(stop_gate=asyncio.Event())
    async with AgentPool(agent, config(min_size=1, max_size=1, stop_timeout=5)) as pool:
        await pool.warm()
        pool.evict_idle()
        warming = asyncio.create_task(pool.warm())
        await steps(20)
        assert not warming.done()
        agent.stop_gate.set()
        assert await warming == 1


# -- what a host may take away ----------------------------------------------------------------------------------


async def test_the_agent_idle_for_longest_is_evicted_first() -> None:
    async with AgentPool(controlled(), config(max_size=3)) as pool:
        assert pool.oldest_idle() is None
        first, second = await hold(pool, 2)
        ids = [first.agent_id, second.agent_id]
        before = monotonic()
        pool.release(second)
        between = monotonic()
        pool.release(first)
        assert before <= (pool.oldest_idle() or 0) <= between
        assert pool.evict()
        assert [facts.agent_id for facts in pool.agents()] == ids[:1]
        assert (pool.oldest_idle() or 0) >= between
        assert pool.evict()
        assert not pool.evict()


async def test_a_recycle_or_a_snapshot_is_no_use(tmp_path: Path) -> None:
    async with AgentPool(Counting, config(max_size=2, recycle_threshold=1, recycle_jitter=0)) as pool:
        old, new = await hold(pool, 2)
        id = old.agent_id
        pool.release(old)
        since = pool.oldest_idle()
        pool.release(new)
        pool._recycler.mark(pool._core.members[id], "for the test")
        await wait_until(lambda: pool.metrics().recycles == 1)
        await pool.save_state(FileStorage(tmp_path / "state"))
        check(pool)
        assert pool.oldest_idle() == since
        assert pool._core.idle[0].id == id


async def test_an_agent_that_is_being_made_is_evicted_unless_somebody_waits_for_it() -> None:
    agent = controlled(start_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=2)) as pool:
        first, second = ask(pool), ask(pool)
        await steps()
        assert pool.metrics().starting == 2
        assert not pool.evict(), "both are waited for"
        second.cancel()
        await steps(2)
        assert pool.evict()
        assert not pool.evict()
        check(pool)
        await wait_until(lambda: pool.total == 1)
        agent.start_gate.set()
        assert await first
        assert pool.metrics().spawned == 2


async def test_who_waited_for_the_evicted_one_gets_the_other() -> None:
    agent = controlled(start_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=2)) as pool:
        first, second = ask(pool), ask(pool)
        await steps()
        first.cancel()
        await steps(2)
        assert pool.evict(), "the one made last, for the second"
        agent.start_gate.set()
        assert await second
        assert pool.metrics().spawned == 2, "none was made anew"


async def test_who_waited_for_the_evicted_one_is_told_when_the_other_fails() -> None:
    agent = controlled(start_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=2)) as pool:
        first, second = ask(pool), ask(pool, timeout=5)
        await steps()
        first.cancel()
        await steps(2)
        assert pool.evict()
        agent.start_errors = [OSError()]
        agent.start_gate.set()
        with pytest.raises(StartFailed):
            await second


async def test_the_host_is_told_of_agents_that_the_next_requests_will_take() -> None:
    agent = controlled(start_gate=asyncio.Event())
    async with AgentPool(agent, config(max_size=3)) as pool:
        first, second = ask(pool), ask(pool)
        await steps()
        assert (pool.total, pool.unclaimed) == (2, 0)
        first.cancel()
        await steps(2)
        assert pool.unclaimed == 1
        third = ask(pool)
        await steps()
        assert (pool.total, pool.unclaimed) == (2, 0), "none was made for it"
        agent.start_gate.set()
        assert await second
        assert await third
        assert pool.unclaimed == 0


async def test_those_that_are_made_ahead_are_unclaimed() -> None:
    agent = controlled(start_gate=asyncio.Event())
    async with AgentPool(agent, config(min_size=2)) as pool:
        assert pool.unclaimed == 2
        asking = ask(pool)
        await steps()
        assert pool.unclaimed == 1
        agent.start_gate.set()
        await asking
        await pool.warm()
        assert pool.unclaimed == 0


async def test_what_was_evicted_comes_back_only_at_the_next_look() -> None:
    async with AgentPool(controlled(), config(min_size=2, max_size=2)) as pool:
        await pool.warm()
        pool.evict()
        await wait_until(lambda: pool.leaving == 0)
        await steps()
        assert pool.total == 1
        await pool._upkeep.look_once()
        assert pool.total == 2


async def test_a_broken_agent_is_replaced_when_its_place_is_free() -> None:
    agent = controlled()
    async with AgentPool(agent, config(min_size=2, max_size=2, breaker_failures=9)) as pool:
        await pool.warm()
        pool._core.idle[0].instance.break_("for the test")
        assert (pool.total, pool.leaving) == (2, 1)
        await wait_until(lambda: pool.metrics().idle == 2)


async def test_where_there_is_room_a_broken_agent_is_replaced_at_once() -> None:
    agent = controlled(stop_gate=asyncio.Event())
    async with AgentPool(agent, config(min_size=1, max_size=2)) as pool:
        await pool.warm()
        pool._core.idle[0].instance.break_("for the test")
        assert (pool.metrics().starting, pool.leaving) == (1, 1)
        agent.stop_gate.set()


async def test_an_empty_pool_does_not_look() -> None:
    looks = 0
    pool = AgentPool(controlled(), config(maintenance_interval=0.05))
    look_once = pool._upkeep.look_once

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await look_once()

    pool._upkeep.look_once = counted  # type: ignore[method-assign]
    async with pool:
        await asyncio.sleep(0.2)
        assert looks == 0
        async with pool.acquire():
            await wait_until(lambda: looks >= 2)
        pool.evict()
        await wait_until(lambda: pool.total == 0)
        seen = looks
        await asyncio.sleep(0.2)
        assert looks <= seen + 1
