"""Upgrades under load, and releases that do not fit together."""

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.master import BIN, Master, clean_environ
from support.releases import make_release
from support.wait import wait_until
from system.task_pools import audit_lines

from agentpool import connect
from agentpool.doctor import examine
from agentpool.errors import ConfigError
from agentpool.version import SCHEMA_OLDEST, SCHEMA_VERSION

NewMaster = Callable[..., Master]
POOL = "developer_pool"
AGENTS = ["sample_agents:Counter", "task_agents:Napper"]


def settings(**more: object) -> dict[str, dict[str, object]]:
    return {POOL: {"agents": AGENTS, "worker_idle_timeout": 600.0, "min_workers": 2, "max_workers": 2, **more}}


def upgrade(master: Master, **environ: str) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / "agentpool-master"), "upgrade", "--json", "--config", str(master.config), "--timeout", "60"]
    return subprocess.run(
        words, capture_output=True, text=True, env=clean_environ(**environ), cwd=master.folder, check=False, timeout=90
    )


async def _releases(pool: Any) -> set[str]:
    return {worker.release for worker in await pool.workers()}


async def test_an_upgrade_under_load_loses_nothing_and_runs_nothing_twice(
    new_master: NewMaster, tmp_path: Path
) -> None:
    current = tmp_path / "current"
    current.symlink_to(make_release(tmp_path / "old", "1.0.0"))
    make_release(tmp_path / "new", "1.1.0", SCHEMA_VERSION=SCHEMA_VERSION + 1)
    master = new_master(settings()).start(PYTHONPATH=str(current))
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        assert await _releases(pool) == {"1.0.0"}
        before = {worker.process_id for worker in await pool.workers()}
        counters = await asyncio.gather(*(pool.spawn("Counter", id=f"counter-{n}") for n in range(6)))
        assert await asyncio.gather(*(counter.run(None) for counter in counters)) == [1] * 6
        long = await pool.submit_many("Napper", [3.0] * 4)
        stop, handles, fewest = asyncio.Event(), list(long), 99

        async def submit() -> None:
            nonlocal fewest
            while not stop.is_set():
                handles.append(await pool.submit("Napper", 0.05))
                workers = await pool.workers()
                fewest = min(fewest, sum(worker.status == "ready" for worker in workers))
                await asyncio.sleep(0.02)

        busy = asyncio.create_task(submit())
        current.unlink()
        current.symlink_to(tmp_path / "new")
        done = await asyncio.to_thread(upgrade, master, PYTHONPATH=str(current))
        assert done.returncode == 0, done.stderr + master.output()
        result = json.loads(done.stdout)
        assert (result["release_before"], result["release"], result["workers"]) == ("1.0.0", "1.1.0", 2)
        assert master.process
        assert master.process.poll() is None, "the same process goes on"
        assert await _releases(pool) == {"1.1.0"}
        assert not before & {worker.process_id for worker in await pool.workers()}
        assert len(master.logged("redis.adopted")) == 1
        stop.set()
        await busy
        results = await asyncio.gather(*(handle.result(20) for handle in handles))
        assert {one["attempt"] for one in results} == {1}
        assert fewest >= 2, "a new worker was ready before an old one drained"
        assert await asyncio.gather(*(counter.run(None, timeout=10) for counter in counters)) == [2] * 6
        info = await pool.info()
        assert (info.release, info.schema, info.schema_min) == ("1.1.0", SCHEMA_VERSION + 1, SCHEMA_OLDEST)
        tasks = {handle.id for handle in handles}
        await wait_until(lambda: tasks <= {line["task_id"] for line in audit_lines(master)})
        runs = Counter(line["task_id"] for line in audit_lines(master))
        assert {runs[task] for task in tasks} == {1}, "each ran once"
        await wait_until(lambda: _is_renewed(pool))
        assert await examine(client.store) == []
    assert master.stop() == 0
    assert master.children() == []


async def _ready(pool: Any, count: int) -> bool:
    return bool((await pool.stats()).active_worker_processes == count)


async def _is_renewed(pool: Any) -> bool:
    return not (await pool.info()).renewing


async def test_an_upgrade_to_what_does_not_load_changes_nothing(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        before = {worker.process_id for worker in await pool.workers()}
        config = master.config.read_text()
        master.write_config(settings(agents=["broken_import:Echo"]))
        done = await asyncio.to_thread(upgrade, master)
        assert done.returncode == 1
        assert "module_that_does_not_exist" in json.loads(done.stderr)["error"]["message"]
        assert await pool.run("Napper", 0)
        assert before == {worker.process_id for worker in await pool.workers()}
        master.config.write_text(config)
        done = await asyncio.to_thread(upgrade, master)
        assert json.loads(done.stdout)["workers"] == 2, "the release is the same, the agents' code may be new"
        assert not before & {worker.process_id for worker in await pool.workers()}


async def test_a_crashed_master_of_an_old_release_is_followed_by_one_of_a_new_one(
    new_master: NewMaster, tmp_path: Path
) -> None:
    new = make_release(tmp_path / "new", "9.9.9")
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        task = await pool.submit("Napper", 2.0)
        master.kill()
        master.start(PYTHONPATH=str(new))
        assert len(master.logged("worker.adopted")) == 2
        await wait_until(lambda: _all_of(pool, "9.9.9"), message=master.output)
        assert (await task.result(10))["attempt"] == 1
        assert await examine(client.store) == []


async def _all_of(pool: Any, release: str) -> bool:
    workers = await pool.workers()
    return len(workers) == 2 and {worker.release for worker in workers} == {release}


async def test_releases_that_are_more_than_a_step_apart_refuse_each_other_clearly(
    new_master: NewMaster, redis_url: str, tmp_path: Path
) -> None:
    far = make_release(tmp_path / "far", "9.9.9", SCHEMA_VERSION=SCHEMA_VERSION + 2, SCHEMA_OLDEST=SCHEMA_VERSION + 1)
    old = new_master(settings(), redis={"url": redis_url}).start()
    new = new_master(settings(), redis={"url": redis_url}).start(wait=False, PYTHONPATH=str(far))
    assert new.process
    assert await asyncio.to_thread(new.process.wait, 20) == 1
    assert "cannot work beside the master" in new.output()
    assert "Upgrade through the release between them" in new.output()
    assert old.stop() == 0
    new.start(PYTHONPATH=str(far))
    old.start(wait=False)
    assert old.process
    assert await asyncio.to_thread(old.process.wait, 20) == 1
    assert "too old. Install release 9.9.9 or a later one" in old.output()
    assert old.children() == []
    with pytest.raises(ConfigError, match=r"Install release 9\.9\.9"):
        async with connect(redis_url):
            pass
    new.signal(signal.SIGTERM)
    assert await asyncio.to_thread(new.process.wait, 20) == 0
