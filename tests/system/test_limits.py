"""Limits of tenants, end to end, with two workers."""

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest
import redis
from support.master import Master
from support.wait import wait_until
from system.task_pools import POOL, overlap, settings

from agentpool.doctor import examine
from agentpool.errors import AgentLimitError, TaskFailed

NewMaster = Callable[..., Master]


async def _ready(pool, count: int) -> bool:
    return (await pool.stats()).active_worker_processes == count


async def _uses(pool, tenant: str, running: int, queued: int) -> bool:
    usage = await pool.tenant(tenant)
    return (usage.running, usage.queued) == (running, queued)


async def test_a_tenant_never_runs_more_than_its_limit_across_workers(new_master: NewMaster) -> None:
    master = new_master(settings(min_workers=2, max_workers=2, agents_per_worker=4)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        handles = {
            tenant: await pool.submit_many("Napper", [0.05 + 0.01 * (n % 7) for n in range(40)], tenant=tenant)
            for tenant in ("acme", "globex")
        }
        most = []
        for tenant in handles:
            results = await asyncio.gather(*(handle.result(20) for handle in handles[tenant]))
            most.append(overlap((r["began"], r["ended"]) for r in results))
        assert max(most) == 5, "as many as it may, and never more"
        pids = {(await handle.result())["pid"] for handle in handles["acme"]}
        assert len(pids) == 2
        free = await asyncio.gather(*(pool.run("Napper", 0.3) for _ in range(12)))
        assert overlap((r["began"], r["ended"]) for r in free) > 5, "the default tenant has no limit"
        assert await examine(client.store) == []


async def test_who_would_rather_be_refused_is_told_which_limit_and_when_to_come_again(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = await pool.submit_many("Napper", [60] * 5, tenant="acme", when_limited="reject")
        with pytest.raises(AgentLimitError) as caught:
            await pool.submit("Napper", 0, tenant="acme", when_limited="reject")
        assert (caught.value.code, caught.value.limit) == ("CONCURRENT_LIMIT", 5)
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        waits = await pool.submit("Napper", 0, tenant="acme")
        await wait_until(lambda: _uses(pool, "acme", 5, 1))
        await handles[0].cancel()
        assert await waits.result(5)
        for handle in handles[1:]:
            await handle.cancel()
        await wait_until(lambda: _uses(pool, "acme", 0, 0))
        assert await pool.submit("Napper", 0, tenant="acme", when_limited="reject")
        for n in range(10):
            await pool.schedule_agent("globex", f"order-{n}", "Napper", 60) if n < 5 else None
        with pytest.raises(AgentLimitError) as caught:
            await pool.schedule_agent("globex", "order-9", "Napper", 60)
        assert caught.value.code == "CONCURRENT_LIMIT"
        assert await examine(client.store) == []


async def test_a_task_may_use_so_many_tokens(new_master: NewMaster) -> None:
    master = new_master(settings(retry_attempts=3)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        assert await pool.run("Spender", 8000, tenant="acme") == 8000
        with pytest.raises(TaskFailed, match="TASK_TOKEN_LIMIT") as caught:
            await pool.run("Spender", 8001, tenant="acme")
        assert caught.value.type == "AgentLimitError"
        assert (await pool.tenant("acme")).tokens_last_minute == 16001
        letters = [letter async for letter in pool.dead_letters()]
        assert [letter.attempts for letter in letters] == [1], "it may not the next time either"


async def test_tokens_of_a_minute_hold_tasks_until_the_window_frees(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.limit_tenant("acme", tokens_per_minute=1000)
        with redis.Redis.from_url(master.url, decode_responses=True) as cli:
            second = int(cli.time()[0])
            cli.hset(f"tenant:{POOL}:acme:tokens", str(second - 58), 1000)
        began = time.monotonic()
        with pytest.raises(AgentLimitError) as caught:
            await pool.submit("Spender", 1, tenant="acme", when_limited="reject")
        assert caught.value.code == "TOKEN_RATE_LIMIT"
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after < 3
        handles = await pool.submit_many("Spender", [300] * 3, tenant="acme")
        agent = await pool.spawn("Spender", tenant="acme")
        own = await agent.submit(1)
        await asyncio.sleep(0.3)
        usage = await pool.tenant("acme")
        assert (usage.running, usage.held) == (0, True)
        assert await pool.run("Napper", 0, tenant="globex"), "others are not held"
        assert await asyncio.gather(*(handle.result(10) for handle in handles)) == [300] * 3
        assert await own.result(10) == 1, "its pinned agents wait and go on as well"
        assert 1.0 < time.monotonic() - began < 5
        assert await examine(client.store) == []


async def test_requests_of_a_minute_and_limits_that_change_while_tasks_wait(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.limit_tenant("acme", requests_per_minute=3)
        handles = await pool.submit_many("Napper", [0] * 6, tenant="acme")
        await wait_until(lambda: _uses(pool, "acme", 0, 3))
        with pytest.raises(AgentLimitError) as caught:
            await pool.submit("Napper", 0, tenant="acme", when_limited="reject")
        assert caught.value.code == "REQUEST_RATE_LIMIT"
        await pool.limit_tenant("acme", requests_per_minute=0)
        await asyncio.gather(*(handle.result(5) for handle in handles))
        await pool.limit_tenant("acme", running=1)
        handles = await pool.submit_many("Napper", [0.6] * 4, tenant="acme")
        await wait_until(lambda: _uses(pool, "acme", 1, 3))
        await pool.limit_tenant("acme", running=None)
        results = await asyncio.gather(*(handle.result(5) for handle in handles))
        assert overlap((r["began"], r["ended"]) for r in results) == 4
        assert (await pool.tenant("acme")).limits.running == 5
        assert await examine(client.store) == []


async def test_nothing_of_a_limit_leaks_when_workers_are_killed(new_master: NewMaster) -> None:
    master = new_master(settings(min_workers=2, tenant_running=4)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        handles = await pool.submit_many("Napper", [0.3] * 20, tenant="acme")
        parents = await pool.submit_many("Parent", [0.3] * 6, tenant="globex")
        for _ in range(2):
            await asyncio.sleep(0.4)
            for worker in await pool.workers():
                if worker.pid:
                    os.kill(worker.pid, signal.SIGKILL)
        results = await asyncio.gather(*(handle.result(30) for handle in handles))
        assert overlap((r["began"], r["ended"]) for r in results) <= 4
        await asyncio.gather(*(parent.result(30) for parent in parents))
        for tenant in ("acme", "globex"):
            usage = await pool.tenant(tenant)
            assert (usage.running, usage.queued, usage.held) == (0, 0, False)
        assert await examine(client.store) == []
        with redis.Redis.from_url(master.url, decode_responses=True) as cli:
            left = [key for key in cli.keys("*") if ":waits" in key or ":children:" in key or key.endswith(":attempts")]
            assert left == []
