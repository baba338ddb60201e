"""Other threads and other loops: refused, or served by `SyncPool`."""

import asyncio
import threading

import pytest
from pool.sample import Counting, config, controlled

from agentpool.errors import PoolClosed
from agentpool.pool import AgentPool, SyncPool, run_sync


async def test_another_loop_is_refused() -> None:
    async with AgentPool(controlled(), config()) as pool:

        async def elsewhere() -> None:
            await pool.acquire()

        with pytest.raises(RuntimeError, match="SyncPool"):
            await asyncio.to_thread(asyncio.run, elsewhere())


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


async def test_an_agent_is_used_and_given_back_only_where_it_was_acquired() -> None:
    async with AgentPool(controlled(), config()) as pool:
        lease = await pool.acquire()
        for use in (lambda: pool.release(lease), lease.release, pool.evict, pool.drain_excess):
            with pytest.raises(RuntimeError, match="SyncPool"):
                await asyncio.to_thread(use)

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="SyncPool"):
                pool.release(lease)
            with pytest.raises(RuntimeError, match="SyncPool"):
                await lease.run(1)

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert pool.metrics().active == 1
        assert await lease.run(1) == 1
        pool.release(lease)
        assert pool.metrics().idle == 1
