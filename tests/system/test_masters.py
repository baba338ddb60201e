"""Several masters on one Redis, each with a data directory and so a host identity of its own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.command import PROGRAM
from support.door import door_to
from support.master import Master, clean_environ, ended
from support.wait import wait_until

from agentpool import connect
from agentpool.client import Client
from agentpool.doctor import examine
from agentpool.errors import UnknownPool
from agentpool.protocol.records import HostRecord, WorkerRecord

NewMaster = Callable[..., Master]
POOL = "developer_pool"
LONG = pytest.mark.chaos


def settings(**more: object) -> dict[str, dict[str, object]]:
    agents = ["sample_agents:Echo", "sample_agents:Counter", "task_agents:Napper"]
    return {POOL: {"agents": agents, "worker_idle_timeout": 600.0, **more}}


async def master_ids(client: Client) -> list[str]:
    return [host.master for host in (await client.store.hosts.view(POOL)).hosts]


def id_of(master: Master) -> str:
    return str(master.logged("master.ready")[-1]["master"])


async def by_master(client: Client) -> Counter[str]:
    """How many ready workers each master has."""
    return Counter(worker.master for worker in await client.pool(POOL).workers() if worker.status == "ready")


async def of_master(client: Client, master: str) -> list[WorkerRecord]:
    return [worker for worker in await client.pool(POOL).workers() if worker.master == master]


async def leader(client: Client) -> str:
    return await client.store.locks.leader(POOL)


async def has(client: Client, **wanted: int) -> bool:
    return await by_master(client) == Counter(wanted)


async def host(client: Client, master: str) -> HostRecord | None:
    return await client.store.hosts.one(POOL, master)


async def all_idle(client: Client, count: int) -> bool:
    agents = await client.pool(POOL).agents()
    return len(agents) == count and all(agent.status == "idle" for agent in agents)


async def test_workers_are_spread_and_who_stops_hands_over_at_once(new_master: NewMaster, redis_url: str) -> None:
    first = new_master(settings(min_workers=4, max_workers=8), redis={"url": redis_url}).start()
    async with connect(redis_url) as client:
        await wait_until(lambda: has(client, **{id_of(first): 4}))
        second = new_master(
            settings(min_workers=4, max_workers=8), redis={"url": redis_url}, labels=["gpu"], max_host_workers=5
        ).start()
        one, two = id_of(first), id_of(second)
        pool = client.pool(POOL)
        assert await leader(client) == one
        labelled = await pool.submit("Napper", 0.0, requires=["gpu"])
        assert (await labelled.result(10))["pid"] in {worker.pid for worker in await of_master(client, two)}
        assert await by_master(client) == Counter({one: 4, two: 1}), "only there was one of use"
        await client.pool(POOL).scale(8)
        await wait_until(lambda: has(client, **{one: 4, two: 4}), message=second.output)
        handles = await asyncio.gather(*(client.pool(POOL).spawn("Counter") for _ in range(16)))
        assert await asyncio.gather(*(handle.run(None) for handle in handles)) == [1] * 16

        await wait_until(lambda: _counts(client, two, 4))
        rows = await shown_hosts(redis_url)
        assert rows[one]["leads"] == [POOL]
        assert (rows[two]["labels"], rows[two]["workers"], rows[two]["workers_max"]) == ("gpu", 4, 5)
        assert rows[two]["status"] == "beating"
        assert rows[two]["cpus"] > 0
        assert rows[two]["available_mb"] > 0

        stopped = time.monotonic()
        first.signal(signal.SIGTERM)
        await wait_until(lambda: _leads(client, two), interval=0.005)
        assert time.monotonic() - stopped < 1.5, "no lease is waited for"
        assert first.process
        assert await asyncio.to_thread(first.process.wait, 20) == 0
        assert first.children() == []
        await wait_until(lambda: has(client, **{two: 5}), message=second.output)
        assert await master_ids(client) == [two]
        assert await asyncio.gather(*(handle.run(None, timeout=10) for handle in handles)) == [2] * 16
        assert second.logged("hosts.full"), "eight are wanted, five may be there"
        assert await examine(client.store) == []
    assert second.stop() == 0


async def _leads(client: Client, master: str) -> bool:
    return await leader(client) == master


async def _counts(client: Client, master: str, workers: int) -> bool:
    found = await host(client, master)
    return found is not None and found.workers == workers


async def shown_hosts(url: str) -> dict[str, dict[str, Any]]:
    """What `agentpool hosts` prints, by master."""
    words = [*PROGRAM, "hosts", "--json", "--redis-url", url]
    done = await asyncio.to_thread(subprocess.run, words, stdout=subprocess.PIPE, env=clean_environ(), check=True)
    return {row["master"]: row for row in json.loads(done.stdout)}


async def test_another_leads_when_the_leaders_lease_is_over_and_the_first_is_adopted_back(
    new_master: NewMaster, redis_url: str
) -> None:
    pools = settings(min_workers=4, max_workers=8, heartbeat_timeout=2.0)
    first = new_master(pools, redis={"url": redis_url}, leader_lease=1.5).start()
    async with connect(redis_url) as client:
        await wait_until(lambda: has(client, **{id_of(first): 4}))
        second = new_master(pools, redis={"url": redis_url}, leader_lease=1.5).start()
        one, two = id_of(first), id_of(second)
        pool = client.pool(POOL)
        handles = await asyncio.gather(*(pool.spawn("Echo") for _ in range(12)))
        before = {worker.process_id for worker in await pool.workers()}

        first.kill()
        killed = time.monotonic()
        await wait_until(lambda: _leads(client, two), interval=0.005)
        assert time.monotonic() - killed < 2.5, "the lease and a second"
        assert await asyncio.gather(*(handle.run(1) for handle in handles)) == [1] * 12
        await pool.scale(6)
        await wait_until(lambda: has(client, **{one: 4, two: 2}))
        victim = next(w for w in await pool.workers() if w.master == one)
        os.kill(victim.pid, signal.SIGKILL)
        await wait_until(lambda: has(client, **{one: 3, two: 3}), message=second.output)
        assert (await shown_hosts(redis_url))[one]["status"] == "silent"

        first.start()
        assert len(first.logged("worker.adopted")) == 3
        assert await leader(client) == two
        assert before - {victim.process_id} <= {worker.process_id for worker in await pool.workers()}
        victim = next(w for w in await pool.workers() if w.master == one)
        os.kill(victim.pid, signal.SIGKILL)
        await wait_until(lambda: has(client, **{one: 3, two: 3}), message=second.output)
        await wait_until(lambda: all_idle(client, 12))
        assert await examine(client.store) == []


async def test_a_leader_that_was_paused_past_its_lease_does_no_harm(new_master: NewMaster, redis_url: str) -> None:
    pools = settings(min_workers=3, max_workers=8, heartbeat_timeout=1.5)
    first = new_master(pools, redis={"url": redis_url}, leader_lease=1.0).start()
    async with connect(redis_url) as client:
        await wait_until(lambda: has(client, **{id_of(first): 3}))
        second = new_master(pools, redis={"url": redis_url}, leader_lease=1.0).start()
        one, two = id_of(first), id_of(second)
        pool = client.pool(POOL)
        task = await pool.submit("Napper", 4.0)
        for _ in range(2):
            first.signal(signal.SIGSTOP)
            await wait_until(lambda: _leads(client, two))
            await pool.scale(5)
            await wait_until(lambda: has(client, **{one: 3, two: 2}), message=second.output)
            first.signal(signal.SIGCONT)
            await wait_until(lambda: first.logged("leader.lost"), message=first.output)
            assert await leader(client) == two
        await asyncio.sleep(1.0)
        assert await has(client, **{one: 3, two: 2})
        assert not first.logged("worker.reaped")
        assert not second.logged("worker.reaped"), "a master that is paused loses no workers"
        events = [str(event.type) async for event in pool.events()]
        assert events.count("worker.ordered") == 5
        assert "worker.draining" not in events
        assert (await task.result(10))["attempt"] == 1
        assert await examine(client.store) == []


async def test_a_lost_host_is_reaped_and_its_agents_and_tasks_go_on_elsewhere(
    new_master: NewMaster, redis_url: str
) -> None:
    pools = settings(min_workers=4, max_workers=4, heartbeat_timeout=1.5, agents_per_worker=10)
    first = new_master(pools, redis={"url": redis_url}).start()
    async with connect(redis_url) as client:
        await wait_until(lambda: has(client, **{id_of(first): 4}))
        second = new_master(pools, redis={"url": redis_url}).start()
        one, two = id_of(first), id_of(second)
        pool = client.pool(POOL)
        for worker in (await pool.workers())[:2]:
            await client.drain(worker.process_id)
        await wait_until(lambda: has(client, **{one: 2, two: 2}), message=first.output)
        handles = await asyncio.gather(*(pool.spawn("Counter") for _ in range(12)))
        tasks = await pool.submit_many("Napper", [3.0] * 8)
        await wait_until(lambda: _running(pool, 8))
        lost = [worker for worker in await pool.workers() if worker.master == two]

        second.process.kill()
        for process in second.children():
            process.kill()
        killed = time.monotonic()
        await wait_until(lambda: has(client, **{one: 4}), message=first.output)
        assert time.monotonic() - killed < 1.5 + 2.5, "the heartbeat timeout, and a scan"
        assert await asyncio.gather(*(handle.run(None, timeout=10) for handle in handles))
        results = await asyncio.gather(*(task.result(15) for task in tasks))
        assert {result["attempt"] for result in results} == {1}
        assert {worker.process_id for worker in lost}.isdisjoint(w.process_id for w in await pool.workers())
        await wait_until(lambda: _listed(client, one), timeout=15)
        assert await examine(client.store) == []


async def _running(pool: Any, count: int) -> bool:
    return bool((await pool.stats()).running_tasks == count)


async def _listed(client: Client, *masters: str) -> bool:
    return await master_ids(client) == sorted(masters)


@pytest.mark.parametrize("leads", [True, pytest.param(False, marks=LONG)])
async def test_a_host_that_was_cut_off_finds_out_and_starts_afresh(
    new_master: NewMaster, redis_url: str, tmp_path: Path, leads: bool
) -> None:
    pools = settings(min_workers=4, max_workers=4, heartbeat_timeout=1.5)
    with door_to(redis_url) as door:
        first = new_master(pools, redis={"url": redis_url})
        second = new_master(pools, redis={"url": door.url, "command_timeout": 1.0})
        async with connect(redis_url) as client:
            leader_first = [second, first] if leads else [first, second]
            leader_first[0].start()
            await wait_until(lambda: has(client, **{id_of(leader_first[0]): 4}))
            leader_first[1].start()
            one, two = id_of(first), id_of(second)
            pool = client.pool(POOL)
            for worker in (await pool.workers())[:2]:
                await client.drain(worker.process_id)
            await wait_until(lambda: has(client, **{one: 2, two: 2}), message=first.output)
            assert await leader(client) == id_of(leader_first[0])
            handles = await asyncio.gather(*(pool.spawn("Counter") for _ in range(12)))
            there = [worker for worker in await pool.workers() if worker.master == two]

            door.shut()
            await wait_until(lambda: has(client, **{one: 4}), message=first.output)
            await wait_until(lambda: all_idle(client, 12))
            assert not any(ended(worker.pid) for worker in there), "they cannot know yet"
            door.open()
            await wait_until(lambda: all(ended(worker.pid) for worker in there), message=second.output)
            await wait_until(lambda: ends_of(second, there) == ["exited with 11 (given up)"] * 2)
            await wait_until(lambda: _leads(client, one))
            assert await asyncio.gather(*(handle.run(None, timeout=10) for handle in handles)) == [1] * 12
            await pool.drain((await pool.workers())[0].process_id)
            await wait_until(lambda: has(client, **{one: 3, two: 1}), message=second.output)
            assert await examine(client.store) == []
            second.stop()


def ends_of(master: Master, workers: list[WorkerRecord]) -> list[str]:
    ids = {worker.process_id for worker in workers}
    return [line["how"] for line in master.logged("worker.exited") if line["process_id"] in ids]


@pytest.mark.parametrize(
    "die_at", ["reserve_workers:after", "start_worker:before", pytest.param("start_worker:after", marks=LONG)]
)
async def test_a_master_that_dies_while_it_starts_workers_is_picked_up(
    new_master: NewMaster, redis_url: str, die_at: str
) -> None:
    pools = settings(min_workers=3, max_workers=3)
    master = new_master(pools, redis={"url": redis_url}).start(wait=False, die_at=die_at)
    assert master.process
    assert await asyncio.to_thread(master.process.wait, 20) == -signal.SIGKILL
    master.start()
    async with connect(redis_url) as client:
        await wait_until(lambda: has(client, **{id_of(master): 3}), message=master.output)
        pids = {worker.pid for worker in await client.pool(POOL).workers()}
        await wait_until(lambda: worker_pids(master) == pids)
        assert await client.pool(POOL).run("Echo", 1) == 1
        assert await examine(client.store) == []


def worker_pids(master: Master) -> set[int]:
    found = set()
    for process in master.children():
        with contextlib.suppress(psutil.Error):
            found |= {process.pid} if "agentpool-worker" in " ".join(process.cmdline()) else set()
    return found


@pytest.mark.parametrize(
    "die_at", ["update_pool:before", "forget_host:after", pytest.param("drain_worker:after", marks=LONG)]
)
async def test_a_master_that_dies_while_it_removes_a_pool_is_picked_up(
    new_master: NewMaster, redis_url: str, die_at: str
) -> None:
    pools = settings(min_workers=1, max_workers=1)
    both = {**pools, "old_pool": {**pools[POOL], "worker_idle_timeout": 600.0}}
    master = new_master(both, redis={"url": redis_url}).start(die_at=die_at)
    async with connect(redis_url) as client:
        old = client.pool("old_pool")
        await old.spawn("Echo", id="left")
        master.write_config(pools, redis={"url": redis_url})
        master.signal(signal.SIGHUP)
        assert master.process
        assert await asyncio.to_thread(master.process.wait, 20) == -signal.SIGKILL
        master.start()
        await wait_until(lambda: _is_empty(client, "old_pool"), message=master.output)
        with pytest.raises(UnknownPool):
            await old.spawn("Echo", timeout=1)
        await wait_until(lambda: len(worker_pids(master)) == 1)
        assert await client.pool(POOL).run("Echo", 1) == 1
        assert await examine(client.store) == []


async def _is_empty(client: Client, pool: str) -> bool:
    return await client.store.workers.all(pool) == [] and await client.store.pools.names() == [POOL]


@LONG
async def test_two_masters_with_one_identity_are_refused(new_master: NewMaster, redis_url: str) -> None:
    first = new_master(settings(), redis={"url": redis_url}, host_id="copied").start()
    second = new_master(settings(), redis={"url": redis_url}, host_id="copied").start(wait=False)
    assert second.process
    assert await asyncio.to_thread(second.process.wait, 20) == 1
    assert "two need two identities" in second.output()
    async with connect(redis_url) as client:
        assert await client.pool(POOL).run("Echo", 1) == 1
        assert await by_master(client) == Counter({id_of(first): 1})
    assert second.children() == []
