"""What may be said of a task, end to end: when, once, until when, in what order; followed, cancelled, nested."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from support.master import Master
from support.wait import wait_until
from system.task_pools import POOL, settings

from agentpool.doctor import examine
from agentpool.errors import IdempotencyConflict, TaskCancelled, TaskFailed, TaskTimedOut

NewMaster = Callable[..., Master]


async def _status(handle, status: str) -> bool:
    return (await handle.info())["status"] == status


async def test_delayed_dated_and_expiring_tasks(new_master: NewMaster) -> None:
    master = new_master(settings(agents_per_worker=1, max_workers=1)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.run("Napper", 0)
        now = time.time()
        later = await pool.submit("Napper", 0, delay=0.6)
        at = await pool.submit("Napper", 0, at=datetime.now(UTC) + timedelta(seconds=1.0))
        past = await pool.submit("Napper", 0, at=now - 60)
        assert (await past.result(5))["began"] < now + 0.5
        assert await _status(later, "delayed")
        assert now + 0.55 <= (await later.result(5))["began"] < now + 1.2
        assert now + 0.95 <= (await at.result(5))["began"] < now + 1.6
        long = await pool.submit("Napper", 1.0)
        await wait_until(lambda: _status(long, "leased"))
        short = await pool.submit("Napper", 0, expires=0.3)
        patient = await pool.submit("Napper", 0, expires=30)
        with pytest.raises(TaskTimedOut, match="expired"):
            await short.result(5)
        assert await _status(long, "leased")
        assert await patient.result(5)
        assert await examine(client.store) == []


async def test_batch_tasks_run_when_nothing_else_waits_or_when_they_waited_long(new_master: NewMaster) -> None:
    master = new_master(settings(agents_per_worker=1, max_workers=1, batch_max_wait=1.5)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        block = await pool.submit("Napper", 0.3)
        await wait_until(lambda: _status(block, "leased"))
        batch = await pool.submit("Napper", 0, batch=True)
        others = await pool.submit_many("Napper", [0.05] * 10)
        began = (await batch.result(10))["began"]
        assert all([(await other.result(5))["began"] < began for other in others])
        block = await pool.submit("Napper", 0.3)
        await wait_until(lambda: _status(block, "leased"))
        handed_in = time.time()
        batch = await pool.submit("Napper", 0, batch=True)
        flood = await pool.submit_many("Napper", [0.1] * 40)
        began = (await batch.result(10))["began"]
        assert 1.4 < began - handed_in < 3
        for handle in flood:
            await handle.cancel()
        assert await examine(client.store) == []


async def test_one_key_is_one_task(new_master: NewMaster) -> None:
    master = new_master(settings(key_ttl=1.0)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        first = await pool.submit("Napper", 0.2, key="order-7")
        assert (await pool.submit("Napper", 0.2, key="order-7")).id == first.id
        assert (await pool.submit("Napper", 0.2, key="order-7", tenant="acme")).id != first.id
        with pytest.raises(IdempotencyConflict):
            await pool.submit("Napper", 0.3, key="order-7")
        result = await first.result(5)
        assert (await pool.run("Napper", 0.2, key="order-7")) == result
        await asyncio.sleep(1.2)
        assert (await pool.submit("Napper", 0.3, key="order-7")).id != first.id
        assert await examine(client.store) == []


async def test_delayed_queued_and_running_tasks_are_cancelled(new_master: NewMaster) -> None:
    master = new_master(settings(agents_per_worker=1, max_workers=1)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        running = await pool.submit("Napper", 60)
        await wait_until(lambda: _status(running, "leased"))
        queued, delayed = await pool.submit("Napper", 0), await pool.submit("Napper", 0, delay=60)
        for handle in (queued, delayed, running):
            assert await handle.cancel()
            with pytest.raises(TaskCancelled):
                await handle.result(5)
            assert not await handle.cancel()
        assert await pool.run("Napper", 0)
        assert await examine(client.store) == []


async def test_a_task_is_followed_with_what_it_emits(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.submit("Emitter", 3, delay=0.3)
        events = [event async for event in handle.events()]
        assert [event.type for event in events] == [
            "task.delayed", "task.started", "task.progress", "task.progress", "task.progress", "task.finished",
        ]  # fmt: skip
        assert [event.data for event in events if event.type == "task.progress"] == [{"step": n} for n in range(3)]
        assert handle.state == "succeeded"
        again = [event.type async for event in handle.events()]
        assert again[-1] == "task.finished"


async def test_nested_tasks_lend_their_slots_and_do_not_lock_each_other_out(new_master: NewMaster) -> None:
    master = new_master(settings(agents_per_worker=5, max_workers=1, tenant_running=5)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        parents = await pool.submit_many("Parent", [0.3] * 5, tenant="acme")
        await asyncio.gather(*(parent.result(10) for parent in parents))
        usage = await pool.tenant("acme")
        assert (usage.running, usage.queued, usage.held) == (0, 0, False)
        assert await examine(client.store) == []


async def test_tasks_nest_eight_deep_and_no_deeper(new_master: NewMaster) -> None:
    master = new_master(settings(agents_per_worker=3, max_workers=1)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        assert await pool.run("Deep", 8, timeout=20) == 8
        with pytest.raises(TaskFailed, match="8 deep"):
            await pool.run("Deep", 9, timeout=20)
        assert await examine(client.store) == []
