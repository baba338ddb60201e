"""States, events, figures."""

import asyncio

from pool.sample import check, config, controlled, hold, steps

from agentpool.pool import POOLED_MOVES, AgentPool, PooledState


def test_the_table_is_made_of_the_agents_own() -> None:
    assert POOLED_MOVES[PooledState.TERMINATED] == frozenset()
    assert POOLED_MOVES[PooledState.RECYCLING] == {PooledState.IDLE, PooledState.TERMINATED}


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


async def test_leases_that_are_out_are_those_acquired_and_not_released() -> None:
    async with AgentPool(controlled(), config(max_size=3)) as pool:
        first, second = await hold(pool, 2)
        async with pool.acquire():
            metrics = pool.metrics()
            assert (metrics.acquired, metrics.released, metrics.active) == (3, 0, 3)
        pool.release(first)
        pool.release(first)
        metrics = pool.metrics()
        assert (metrics.acquired, metrics.released, metrics.active) == (3, 2, 1)
        assert metrics.utilization == 1 / 3
        check(pool)
    pool.release(second)
    assert pool.metrics().released == 3
