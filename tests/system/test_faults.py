"""What happens when things die, freeze, block or lie: real processes, real signals."""

import asyncio
import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest
import redis
from support.master import Master, ended, pid_of
from support.wait import wait_until

from agentpool.doctor import examine
from agentpool.errors import TaskTimedOut, WorkerLost

NewMaster = Callable[..., Master]
POOL = "developer_pool"


async def _all_idle(pool, count: int, *, without: str = "") -> bool:
    agents = await pool.agents()
    return len(agents) == count and all(a.status == "idle" and a.process_id != without for a in agents)


async def _workers(pool, count: int) -> bool:
    stats = await pool.stats()
    return stats.process_count == count and stats.active_worker_processes == count and not stats.starting_workers


async def test_a_killed_worker_is_replaced_at_once_and_its_agents_run_again(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo") for _ in range(15)))
        victim = max(await pool.workers(), key=lambda worker: worker.agent_count)
        os.kill(victim.pid, signal.SIGKILL)
        await wait_until(lambda: _all_idle(pool, 15, without=victim.process_id), timeout=5)
        await wait_until(lambda: _workers(pool, 2), timeout=5)
        assert victim.process_id not in {worker.process_id for worker in await pool.workers()}
        assert await examine(client.store) == []
    assert "SIGKILL" in master.logged("worker.reaped")[0]["reason"]


async def test_tasks_of_a_worker_that_died_run_again_at_once(new_master: NewMaster) -> None:
    settings = {"agents": ["sample_agents:Sleeper", "sample_agents:Suicide"], "heartbeat_timeout": 30.0}
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        agent = await pool.spawn("Sleeper", id="pinned")
        runs = [asyncio.create_task(agent.run(1)), asyncio.create_task(pool.run("Sleeper", 1))]
        await wait_until(lambda: _running(pool, 2))
        worker = (await pool.workers())[0]
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGKILL)
        assert await asyncio.gather(*runs) == ["slept", "slept"]
        assert time.monotonic() - began < 4, "no timeout was waited for"
        with pytest.raises(WorkerLost, match="SIGKILL"):
            await pool.run("Suicide", None)
        await wait_until(lambda: _all_idle(pool, 1))
        assert await examine(client.store) == []


async def _running(pool, count: int) -> bool:
    return (await pool.stats()).running_tasks == count


async def test_a_frozen_worker_is_killed_and_reaped(new_master: NewMaster) -> None:
    master = new_master({POOL: {"heartbeat_timeout": 1.0}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo") for _ in range(5)))
        victim = (await pool.workers())[0]
        os.kill(victim.pid, signal.SIGSTOP)
        await wait_until(lambda: _all_idle(pool, 5, without=victim.process_id), timeout=15)
        assert not psutil.pid_exists(victim.pid)
        assert await examine(client.store) == []
    assert "frozen" in master.logged("worker.reaped")[0]["reason"]


async def test_with_the_master_frozen_too_another_leads_and_reaps_by_time(new_master: NewMaster) -> None:
    first = new_master({POOL: {"heartbeat_timeout": 1.5}}).start()
    async with first.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo") for _ in range(5)))
        victim = (await pool.workers())[0]
        second = new_master({POOL: {"heartbeat_timeout": 1.5}}, redis={"url": first.url}).start()
        first.signal(signal.SIGSTOP)
        os.kill(victim.pid, signal.SIGSTOP)
        await wait_until(lambda: _all_idle(pool, 5, without=victim.process_id), timeout=20)
        before = await _registry(first.url)
        os.kill(victim.pid, signal.SIGCONT)
        await wait_until(lambda: ended(victim.pid), timeout=10)
        assert await _registry(first.url) == before, "the worker that woke up changed nothing"
        first.signal(signal.SIGCONT)
        await asyncio.sleep(1)
        assert await _registry(first.url) == before, "nor did the master that woke up"
        assert await examine(client.store) == []
        assert second.stop() == 0
        assert first.stop() == 0


async def _registry(url: str) -> dict[str, object]:
    """Who is where; without what beats change."""
    with redis.Redis.from_url(url, decode_responses=True) as cli:
        agents = {key: cli.hmget(key, "status", "process_id", "incarnation") for key in cli.keys("agent:*")}
        return {**agents, **{key: cli.hget(key, "status") for key in cli.keys("process:*")}}


async def test_an_agent_that_blocks_the_loop_is_reported_and_its_worker_killed(new_master: NewMaster) -> None:
    settings = {"agents": ["sample_agents:Blocker", "sample_agents:Echo"], "block_timeout": 4.0}
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.spawn("Echo", id="neighbour")
        blocker = await pool.spawn("Blocker", id="blocker")
        victim = (await pool.workers())[0]
        with pytest.raises(TaskTimedOut, match="its time was over while it blocked its worker"):
            await (await blocker.submit(60, timeout=1)).result(30)
        await wait_until(lambda: _all_idle(pool, 2, without=victim.process_id))
        events = [event async for event in pool.events()]
        assert any(event.type == "worker.blocked" and event.process_id == victim.process_id for event in events)
        assert await examine(client.store) == []
    blocked = master.logged("worker.blocked")
    assert any("sample_agents.py" in str(line.get("stack")) for line in blocked), "the stack names the agent's file"


async def test_without_publishing_everything_works_within_a_beat(new_master: NewMaster) -> None:
    master = new_master().start()
    with redis.Redis.from_url(master.url) as cli:
        cli.acl_setuser("default", enabled=True, reset_channels=True)
        cli.client_kill_filter(_type="pubsub")
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = await asyncio.gather(*(pool.spawn("Echo") for _ in range(12)))
        assert await handles[0].run(7) == 7
        assert await pool.run("Echo", 8) == 8
        victim = (await handles[0].info()).process_id
        os.kill(pid_of(await pool.workers(), victim), signal.SIGKILL)
        await wait_until(lambda: _all_idle(pool, 12, without=victim))
        for handle in handles:
            await handle.terminate()
        assert (await pool.stats()).used_capacity == 0
        assert await examine(client.store) == []


async def test_workers_that_die_at_boot_back_off_and_then_stop(new_master: NewMaster) -> None:
    settings = {"agents": ["dies_after_fork:Echo"], "boot_backoff": 0.05, "boot_failures_max": 3}
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _restarts(pool), timeout=10)
        starts = len(master.logged("worker.exited"))
        assert starts == 3
        await asyncio.sleep(1)
        assert len(master.logged("worker.exited")) == starts, "it does not spin"
        assert [event.type async for event in pool.events()].count("pool.restarts_stopped") == 1
        await pool.scale(1)
        await wait_until(lambda: len(master.logged("worker.exited")) > starts)
        assert await examine(client.store) == []


async def _restarts(pool) -> str:
    return (await pool.stats()).restarts


async def test_an_agent_that_kills_its_worker_at_start_is_given_up_and_neighbours_live(new_master: NewMaster) -> None:
    settings = {
        "agents": ["sample_agents:KillsAtStart", "sample_agents:Echo"],
        "boot_backoff": 0.1,
        "boot_failures_max": 3,
        "max_workers": 2,
    }
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        for n in range(5):
            await pool.spawn("Echo", id=f"good-{n}")
        with pytest.raises(Exception, match="lost 3 times while it started"):
            await pool.spawn("KillsAtStart", id="bad")
        await wait_until(lambda: _all_idle(pool, 5))
        assert await examine(client.store) == []


async def test_an_agent_whose_own_code_kills_its_worker_is_given_up_after_three_times(new_master: NewMaster) -> None:
    settings = {
        "agents": ["sample_agents:KillsInBackground", "sample_agents:Echo"],
        "boot_backoff": 0.05,
        "max_workers": 2,
    }
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo", id=f"good-{n}") for n in range(5)))
        await pool.spawn("KillsInBackground", id="bad")
        await wait_until(lambda: _all_idle(pool, 5), timeout=15)
        events = [event async for event in pool.events()]
        (failed,) = [event for event in events if event.type == "agent.failed"]
        assert failed.agent_id == f"{POOL}/bad"
        assert "lost 3 times while its own code ran" in failed.detail
        assert "SIGSEGV" in failed.detail
        assert [event.type for event in events].count("worker.reaped") == 3
        assert not any(agent.crashes for agent in await pool.agents()), "its neighbours are blamed for nothing"
        assert await examine(client.store) == []


async def test_a_killed_zygote_is_replaced_and_its_workers_live_on(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo") for _ in range(10)))
        worker = (await pool.workers())[0]
        zygote = psutil.Process(worker.pid).parent()
        assert zygote is not None
        zygote.kill()
        await pool.spawn("Echo")
        assert worker.process_id in {w.process_id for w in await pool.workers()}
        os.kill(worker.pid, signal.SIGKILL)
        await wait_until(lambda: _all_idle(pool, 11, without=worker.process_id))
        assert await examine(client.store) == []


async def test_a_killed_embedded_server_comes_back_and_everything_goes_on(new_master: NewMaster) -> None:
    master = new_master(redis={"appendfsync": "always"}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = await asyncio.gather(*(pool.spawn("Echo") for _ in range(5)))
        with redis.Redis.from_url(master.url) as cli:
            pid = cli.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: master.logged("redis.restarted"))
        assert await handles[0].run(1, timeout=10) == 1
        await wait_until(lambda: _all_idle(pool, 5))
        assert len(await pool.workers()) == 1
        assert await examine(client.store) == []
