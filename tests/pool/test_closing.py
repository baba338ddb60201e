"""The end of a pool: what those get who wait, hold or run, and what is left of it."""

import asyncio
import contextlib

import pytest
from pool.sample import ask, check_closed, config, controlled, healthy, hold, steps
from support.wait import wait_until

from agentpool import Context
from agentpool.errors import PoolClosed
from agentpool.pool import AgentPool


async def test_close_ends_those_who_wait_and_whoever_comes() -> None:
    agent = controlled()
    pool = AgentPool(agent, config(max_size=1))
    with pytest.raises(PoolClosed, match="not open"):
        await pool.acquire()
    await pool.open()
    held = await pool.acquire()
    waiter = ask(pool)
    await steps()
    closing = asyncio.create_task(pool.close(drain_timeout=5))
    with pytest.raises(PoolClosed):
        await waiter
    with pytest.raises(PoolClosed):
        await pool.acquire()
    assert not closing.done(), "an agent in use may finish"
    pool.release(held)
    await closing
    await pool.close()
    await check_closed(pool, agent)


async def test_close_cancels_what_does_not_finish_and_names_what_ignores_that() -> None:
    agent = controlled()
    pool = AgentPool(agent, config())
    await pool.open()
    good, bad = await hold(pool, 2)
    waits = asyncio.create_task(good.run(asyncio.Event()))
    await steps()
    stop = asyncio.Event()

    async def deaf(self: object, ctx: Context, input: object) -> None:
        for _ in range(20):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0 if stop.is_set() else 0.3)

    agent.run = deaf  # type: ignore[method-assign]
    ignores = asyncio.create_task(bad.run(None))
    await steps()
    bad_id = bad.agent_id
    report = await pool.close()
    assert report.abandoned == (f"Controlled.run() of {bad_id}",)
    assert len(report.cancelled) == 2
    for task in (waits, ignores):
        with pytest.raises(PoolClosed):
            await task
    stop.set()
    await wait_until(lambda: len(asyncio.all_tasks()) == 1)
    await check_closed(pool, agent)


async def test_close_takes_agents_from_those_who_hold_them_and_do_nothing() -> None:
    agent = controlled()
    pool = AgentPool(agent, config())
    await pool.open()
    lease = await pool.acquire()
    await pool.close()
    with pytest.raises(PoolClosed):
        await lease.run(1)
    pool.release(lease)
    await check_closed(pool, agent)


@pytest.mark.parametrize("count", range(12))
async def test_closing_after_any_number_of_steps_leaks_nothing(count: int) -> None:
    agent = controlled(healthy=healthy)
    pool = AgentPool(agent, config(min_size=1, max_size=2))
    await pool.open()

    async def user() -> None:
        async with pool.acquire() as lease:
            await lease.run(1)

    users = [asyncio.create_task(user()) for _ in range(4)]
    await steps(count)
    await pool.close(drain_timeout=1)
    results = await asyncio.gather(*users, return_exceptions=True)
    assert all(result is None or isinstance(result, PoolClosed) for result in results), results
    await check_closed(pool, agent)
