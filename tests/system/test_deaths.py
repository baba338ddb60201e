"""Tasks of workers that die, freeze or are blocked: nothing is lost, nobody is blamed for another."""

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest
from support.master import Master, ended
from support.wait import wait_until
from system.task_pools import POOL, audit_lines, overlap, settings

from agentpool.doctor import examine
from agentpool.errors import TaskTimedOut, WorkerLost

NewMaster = Callable[..., Master]


async def _running(pool, count: int) -> bool:
    return (await pool.stats()).running_tasks == count


async def _ready(pool, count: int) -> bool:
    return (await pool.stats()).active_worker_processes == count


async def test_tasks_of_a_killed_worker_run_at_once_on_another_all_together(new_master: NewMaster) -> None:
    master = new_master(settings(min_workers=2, agents_per_worker=30)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        handles = await pool.submit_many("Napper", [1.0] * 24)
        await wait_until(lambda: _running(pool, 24))
        places = {handle.id: (await handle.info())["process_id"] for handle in handles}
        victim = max(await pool.workers(), key=lambda worker: list(places.values()).count(worker.process_id))
        hit = [handle for handle in handles if places[handle.id] == victim.process_id]
        killed = time.time()
        os.kill(victim.pid, signal.SIGKILL)

        async def again() -> bool:
            infos = [await handle.info() for handle in hit]
            return all(i["status"] == "leased" and i["process_id"] != victim.process_id for i in infos)

        await wait_until(again, timeout=5)
        info = await hit[0].info()
        assert (info["attempts"], info["crashes"]) == (1, 1), "a death is no attempt"
        results = await asyncio.gather(*(handle.result(20) for handle in handles))
        rerun = [result for handle, result in zip(handles, results, strict=True) if handle in hit]
        assert {result["attempt"] for result in results} == {1}
        assert max(result["began"] for result in rerun) - killed < 1.5, "at once"
        assert overlap((r["began"], r["ended"]) for r in rerun) == len(hit), "nobody was blamed, so none ran alone"
        assert [letter async for letter in pool.dead_letters()] == []
        assert await examine(client.store) == []
        await wait_until(lambda: len(audit_lines(master)) == 24 + len(hit), timeout=5)
        succeeded = [line["task_id"] for line in audit_lines(master) if line["status"] == "succeeded"]
        assert sorted(succeeded) == sorted(handle.id for handle in handles), "one outcome each"


@pytest.mark.parametrize("how", ["exit", "segv"])
async def test_a_poison_task_ends_alone_and_its_neighbours_succeed(new_master: NewMaster, how: str) -> None:
    master = new_master(settings(agents_per_worker=20, max_workers=2)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        neighbours = await pool.submit_many("Napper", [1.0] * 10)
        await wait_until(lambda: _running(pool, 10))
        poison = await pool.submit("Poison", how)
        with pytest.raises(WorkerLost, match="3 times while it ran there alone"):
            await poison.result(30)
        results = await asyncio.gather(*(handle.result(20) for handle in neighbours))
        assert {result["attempt"] for result in results} == {1}
        letter = await pool.dead_letter(poison.id)
        assert (letter.kind, letter.crashes, letter.attempts) == ("poison", 4, 0)
        assert [key for key in letter.errors if key.startswith("crash")] != []
        assert len(master.logged("worker.reaped")) == 4, "one death with neighbours, three alone"
        assert await pool.run("Napper", 0), "the pool goes on"
        assert await examine(client.store) == []


async def test_a_task_whose_agent_kills_the_worker_while_it_starts_is_poison_too(new_master: NewMaster) -> None:
    master = new_master(settings(agents_per_worker=20, max_workers=2)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        neighbours = await pool.submit_many("Napper", [1.0] * 5)
        await wait_until(lambda: _running(pool, 5))
        with pytest.raises(WorkerLost, match="3 times while it ran there alone"):
            await pool.run("DiesAtStart", None)
        await asyncio.gather(*(handle.result(20) for handle in neighbours))
        assert len(master.logged("worker.reaped")) <= 6
        assert await examine(client.store) == []


@pytest.mark.parametrize("busy", [False, True])
async def test_who_blocks_its_worker_past_its_own_time_has_timed_out(new_master: NewMaster, busy: bool) -> None:
    master = new_master(settings(block_timeout=1.0, max_workers=2)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        neighbour = await pool.submit("Napper", 1.0)
        await wait_until(lambda: _running(pool, 1))
        blocker = await pool.submit("Blocker", {"seconds": 60, "busy": busy}, timeout=0.5)
        with pytest.raises(TaskTimedOut, match="its time was over while it blocked its worker"):
            await blocker.result(15)
        assert (await neighbour.result(15))["attempt"] == 1
        assert len(master.logged("worker.reaped")) == 1
        assert await examine(client.store) == []


async def test_who_blocks_without_a_timeout_runs_again_alone_and_is_poison_then(new_master: NewMaster) -> None:
    master = new_master(settings(block_timeout=1.0, max_workers=2)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        neighbour = await pool.submit("Napper", 1.0)
        await wait_until(lambda: _running(pool, 1))
        blocker = await pool.submit("Blocker", {"seconds": 60})
        with pytest.raises(WorkerLost, match="blocked its event loop"):
            await blocker.result(40)
        assert (await neighbour.result(15))["attempt"] == 1
        assert (await pool.dead_letter(blocker.id)).kind == "poison"
        assert await examine(client.store) == []


async def test_who_ignores_its_cancellation_times_out_and_its_worker_leaves(new_master: NewMaster) -> None:
    master = new_master(settings(agent_stop_timeout=0.5, max_workers=3)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        counter = await pool.spawn("Counter", id="counter")
        assert await counter.run(None) == 1
        old = (await pool.workers())[0]
        neighbours = await pool.submit_many("Napper", [2.0] * 3)
        began = time.monotonic()
        stubborn = await pool.submit("Stubborn", None, timeout=0.3)
        with pytest.raises(TaskTimedOut):
            await stubborn.result(10)
        assert 0.8 <= time.monotonic() - began < 1.6, "at its timeout and its grace"
        assert [result["pid"] for result in await asyncio.gather(*(n.result(10) for n in neighbours))] == [old.pid] * 3
        await wait_until(lambda: ended(old.pid), timeout=5)
        assert await counter.run(None, timeout=10) == 2, "the pinned agent has moved, with its state"
        assert (await pool.run("Napper", 0))["pid"] != old.pid
        await wait_until(lambda: _ready(pool, 1))
        assert master.logged("worker.runaway")
        assert await examine(client.store) == []


async def test_a_suspect_of_a_pinned_agent_runs_alone_on_a_busy_worker_in_time(new_master: NewMaster) -> None:
    master = new_master(settings(max_workers=1)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        agent = await pool.spawn("Napper", id="pinned")
        task = await agent.submit(0.7)
        others = await pool.submit_many("Napper", [0.4] * 3)
        for crashes in (1, 2):
            await wait_until(lambda: _status(task, "leased"))
            await asyncio.sleep(0.3)  # its mark is a moment later than its lease
            os.kill((await pool.workers())[0].pid, signal.SIGKILL)
            await wait_until(lambda crashes=crashes: _crashes(task, crashes))
        others += await pool.submit_many("Napper", [0.4] * 60)
        result = await task.result(15)
        for other in others:
            ran = await other.result(30)
            assert ran["ended"] <= result["began"] or ran["began"] >= result["ended"], "nothing ran beside it"
        assert await examine(client.store) == []


async def _status(handle, status: str) -> bool:
    return (await handle.info())["status"] == status


async def _crashes(handle, count: int) -> bool:
    return (await handle.info()).get("crashes") == count
