"""Memory, disk, file descriptors, a clock that jumps, a zygote that is frozen: each has an outcome that is known."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis
from support.master import Master, ended
from support.outage import HarmedServer
from support.wait import wait_until

from agentpool.client import connect
from agentpool.config import RedisSettings
from agentpool.doctor import examine
from agentpool.errors import NoCapacity, RedisUnavailable, TaskFailed
from agentpool.redis_server import find_binary

NewMaster = Callable[..., Master]
POOL = "developer_pool"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HarmedServer]:
    harmed = HarmedServer(tmp_path / "redis").start()
    yield harmed
    harmed.stop()


async def _agents(pool, count: int) -> bool:
    agents = await pool.agents()
    return len(agents) == count and all(agent.status == "idle" for agent in agents)


# -- the server -------------------------------------------------------------------------------------------------


async def test_a_full_server_takes_nothing_new_and_drains(server: HarmedServer, new_master: NewMaster) -> None:
    settings = {"agents": ["sample_agents:Echo", "sample_agents:Sleeper"], "heartbeat_timeout": 1.5}
    master = new_master({POOL: settings}, redis={"url": server.url}).start()
    async with connect(server.url) as client:
        pool = client.pool(POOL)
        kept = [await pool.spawn("Echo", id=f"a{n}") for n in range(3)]
        running = [asyncio.create_task(pool.run("Sleeper", 1)) for _ in range(12)]
        await wait_until(lambda: _running(pool))
        with server.client() as cli:
            cli.config_set("maxmemory", 1)
            with pytest.raises(RedisUnavailable, match="out of memory and takes no new work"):
                await pool.submit("Echo", 1)
            with pytest.raises(RedisUnavailable, match="Raise maxmemory"):
                await pool.spawn("Echo")
            victim = (await pool.workers())[0]
            os.kill(victim.pid, signal.SIGKILL)
            master.kill()
            master.start()
            await wait_until(lambda: _agents(pool, 3), message=master.output)
            assert await asyncio.gather(*running) == ["slept"] * 12, "what was taken is done, also by another worker"
            await kept[0].terminate()
            await wait_until(lambda: _agents(pool, 2))
            assert await examine(client.store) == []
            cli.config_set("maxmemory", 0)
        assert await pool.run("Echo", 7, timeout=5) == 7
        assert await examine(client.store) == []


async def _running(pool) -> bool:
    return (await pool.stats()).running_tasks > 5


@contextmanager
def _server_that_minds_its_limits(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server for which a limit on the size of files is an error, as a full disk is, and not its end."""
    folder.mkdir()
    url = f"unix://{folder}/redis.sock"
    process = subprocess.Popen(
        [find_binary(RedisSettings().binary).path, "--dir", folder, "--unixsocket", folder / "redis.sock",
         "--port", "0", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--logfile", folder / "log"],
        restore_signals=False,  # Python ignores SIGXFSZ, and so shall the server
    )  # fmt: skip
    try:
        yield process, url
    finally:
        process.terminate()
        process.wait(10)


async def test_a_server_whose_disk_is_full_is_said_so_and_reaps_nobody(tmp_path: Path, new_master: NewMaster) -> None:
    with _server_that_minds_its_limits(tmp_path / "r") as (process, url), redis.Redis.from_url(url) as cli:
        await wait_until(lambda: _answers(cli))
        master = new_master({POOL: {"heartbeat_timeout": 1.5}}, redis={"url": url}).start()
        async with connect(url) as client:
            pool = client.pool(POOL)
            handles = await asyncio.gather(*(pool.spawn("Echo") for _ in range(5)))
            workers = {worker.process_id for worker in await pool.workers()}
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            await wait_until(lambda: _refuses(cli))
            with pytest.raises(RedisUnavailable, match=r"takes no writes: MISCONF.*Look at its log, its disk"):
                await pool.submit("Echo", 1)
            await asyncio.sleep(2.5)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await wait_until(lambda: _succeeds(pool), timeout=15)
            assert await asyncio.gather(*(handle.run(1) for handle in handles)) == [1] * 5
            await asyncio.sleep(1)
            assert {worker.process_id for worker in await pool.workers()} == workers
            assert master.logged("worker.reaped") == []
            assert await examine(client.store) == []
        assert master.stop() == 0


async def _answers(cli: redis.Redis) -> bool:
    try:
        return bool(cli.ping())
    except redis.ConnectionError:
        return False


async def _refuses(cli: redis.Redis) -> bool:
    try:
        cli.set("x", "y" * 100)
    except redis.ResponseError:
        return True
    return False


async def _succeeds(pool) -> bool:
    try:
        return await pool.run("Echo", 1, timeout=5) == 1
    except RedisUnavailable:
        return False


async def test_where_the_masters_disk_is_full_work_goes_on_and_the_audit_is_kept(
    server: HarmedServer, new_master: NewMaster
) -> None:
    master = new_master({POOL: {"agents_per_worker": 2}}, redis={"url": server.url}).start()
    async with connect(server.url) as client:
        pool = client.pool(POOL)
        await pool.spawn("Echo")
        # Enough for some lines of the audit, too little for all; the log is past it already.
        resource.prlimit(master.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        count = 60
        assert await asyncio.gather(*(pool.run("Echo", n) for n in range(count))) == list(range(count))
        await pool.spawn("Echo")
        await pool.spawn("Echo")
        assert len(await pool.workers()) > 1, "workers start"
        await asyncio.sleep(1.5)
        assert await client.store.audit.read(POOL), "what could not be written stays where it was"
        resource.prlimit(master.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await wait_until(lambda: _no_audit(client), timeout=10)
        files = list((master.data_dir / "audit" / POOL).glob("*.jsonl"))
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert len({row["task_id"] for row in rows}) == count
        assert await examine(client.store) == []


async def _no_audit(client) -> bool:
    return not await client.store.audit.read(POOL)


# -- file descriptors and memory --------------------------------------------------------------------------------


async def test_a_master_without_file_descriptors_starts_nobody_until_it_has_some(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents_per_worker": 2, "boot_backoff": 0.1, "boot_failures_max": 1000}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = [await pool.spawn("Echo") for _ in range(2)]
        before = resource.prlimit(master.pid, resource.RLIMIT_NOFILE)
        process = psutil.Process(master.pid)
        held = min([process.num_fds() for _ in range(50)])  # it may just have one open for a moment
        resource.prlimit(master.pid, resource.RLIMIT_NOFILE, (held - 2, before[1]))
        with pytest.raises(NoCapacity):
            await pool.spawn("Echo", timeout=1.5)
        assert await asyncio.gather(*(handle.run(1) for handle in handles)) == [1, 1]
        assert master.process
        assert master.process.poll() is None
        resource.prlimit(master.pid, resource.RLIMIT_NOFILE, before)
        await pool.spawn("Echo", timeout=15)
        await wait_until(lambda: _settled(pool, 2), timeout=10, message=master.output)
        assert await examine(client.store) == []
    assert master.stop() == 0
    assert master.children() == []


async def _settled(pool, workers: int) -> bool:
    stats = await pool.stats()
    return stats.process_count == workers == stats.active_worker_processes and not stats.starting_workers


async def test_an_agent_that_uses_up_its_worker_fails_alone(new_master: NewMaster) -> None:
    agents = [f"scarce_agents:{name}" for name in ("Opens", "Allocates", "Echo")]
    master = new_master({POOL: {"agents": agents, "max_workers": 1}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        neighbour = await pool.spawn("Echo")
        (worker,) = await pool.workers()
        opens = asyncio.create_task(pool.run("Opens", 1.0))
        with pytest.raises(TaskFailed, match="MemoryError"):
            await pool.run("Allocates", None)
        for n in range(20):
            assert await neighbour.run(n) == n
        assert await opens > 100
        assert await pool.run("Echo", 1) == 1
        assert [one.process_id for one in await pool.workers()] == [worker.process_id], "the worker goes on"
        assert await examine(client.store) == []


# -- time -------------------------------------------------------------------------------------------------------


async def test_a_wall_clock_that_jumps_changes_nothing(new_master: NewMaster) -> None:
    agents = [f"scarce_agents:{name}" for name in ("Echo", "Ages")]
    master = new_master({POOL: {"agents": agents, "agents_per_worker": 3, "heartbeat_timeout": 1.0}})
    master.start(JUMPING_CLOCK="1")
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = [await pool.spawn("Echo", max_idle_time=60) for _ in range(5)]
        workers = {worker.process_id for worker in await pool.workers()}
        delayed = await pool.submit("Echo", "late", delay=0.5)
        waits = [asyncio.create_task(pool.run("Ages", 0.5, timeout=5)) for _ in range(3)]
        assert await asyncio.gather(*(handle.run(1) for handle in handles)) == [1] * 5
        assert all(0.4 < seconds < 4 for seconds in await asyncio.gather(*waits))
        assert await delayed.result(5) == "late"
        await asyncio.sleep(1.5)
        assert await _agents(pool, 5), "nobody idled out, nobody was reaped"
        assert workers <= {worker.process_id for worker in await pool.workers()}
        assert master.logged("worker.reaped") == []
        assert await examine(client.store) == []


# -- the zygote -------------------------------------------------------------------------------------------------


@pytest.mark.chaos  # it takes six seconds
async def test_a_frozen_zygote_is_replaced_and_its_workers_live_on(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents_per_worker": 2}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = [await pool.spawn("Echo") for _ in range(2)]
        (worker,) = await pool.workers()
        zygote = psutil.Process(worker.pid).parent()
        assert zygote
        zygote.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        await pool.spawn("Echo", timeout=20)
        assert time.monotonic() - began < 15
        assert await asyncio.gather(*(handle.run(1) for handle in handles)) == [1, 1]
        assert worker.process_id in {one.process_id for one in await pool.workers()}
        await wait_until(lambda: ended(zygote.pid))
        assert await examine(client.store) == []
