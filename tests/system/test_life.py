"""Starting, reloading, stopping, crashing of the master itself."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.master import BIN, Master, clean_environ
from support.wait import wait_until

from agentpool.doctor import examine
from agentpool.errors import UnknownPool

NewMaster = Callable[..., Master]
POOL = "developer_pool"


async def _workers(pool, count: int) -> bool:
    stats = await pool.stats()
    return stats.process_count == count and stats.active_worker_processes == count and not stats.draining_workers


async def test_stopping_leaves_nothing_behind_and_agents_come_back_with_the_next_start(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["sample_agents:Counter"]}}).start()
    async with master.client() as client:
        counter = await client.pool(POOL).spawn("Counter", id="counter")
        assert [await counter.run(None) for _ in range(2)] == [1, 2]
    before = master.children()
    assert len(before) >= 3, "a zygote, a worker, a server"
    master.signal(signal.SIGINT)
    assert master.process
    assert master.process.wait(15) == 0
    assert master.children() == []
    assert all(not process.is_running() for process in before)
    master.start()
    async with master.client() as client:
        counter = client.pool(POOL).agent("counter")
        assert await counter.run(None, timeout=10) == 3
        assert await examine(client.store) == []


async def test_a_second_signal_hurries(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["sample_agents:Sleeper"], "drain_timeout": 60.0}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.submit("Sleeper", 60)
        await wait_until(lambda: _running(pool))
    master.signal(signal.SIGTERM)
    await wait_until(lambda: master.logged("worker.draining") or master.logged("master.stopping"))
    await asyncio.sleep(0.5)
    assert master.process
    assert master.process.poll() is None, "it waits for the running task"
    master.signal(signal.SIGTERM)
    assert master.process.wait(4) == 0, "the task is cancelled, not waited for"
    assert not [line for line in master.logged("worker.exited") if "clean" not in line["how"]]
    assert master.children() == []


async def _running(pool) -> bool:
    return (await pool.stats()).running_tasks == 1


async def test_after_a_crash_workers_agents_and_server_go_on_and_are_adopted(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = await asyncio.gather(*(pool.spawn("Echo") for _ in range(12)))
        workers = {worker.process_id: worker.pid for worker in await pool.workers()}
        master.kill()
        assert await asyncio.gather(*(handle.run(1) for handle in handles)) == [1] * 12
        dead, alive = sorted(workers)
        os.kill(workers[dead], signal.SIGKILL)
        for name in ("marks/reaped-by-another.marks", "stacks/reaped-by-another.stack"):
            (master.data_dir / name).touch()
        master.start()
        assert {line["process_id"] for line in master.logged("worker.adopted")} == {alive}
        await wait_until(lambda: _settled(pool, 12, {dead}))
        os.kill(workers[alive], signal.SIGKILL)
        await wait_until(lambda: _settled(pool, 12, {dead, alive}))
        assert await examine(client.store) == []
    assert master.stop() == 0
    assert master.children() == []
    assert [*(master.data_dir / "marks").iterdir(), *(master.data_dir / "stacks").iterdir()] == []


async def _settled(pool, count: int, without: set[str]) -> bool:
    agents = await pool.agents()
    return len(agents) == count and all(a.status == "idle" and a.process_id not in without for a in agents)


async def test_a_reload_changes_limits_adds_and_removes_pools(new_master: NewMaster) -> None:
    master = new_master({POOL: {}, "old_pool": {}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await client.pool("old_pool").spawn("Echo", id="left")
        master.write_config({POOL: {"max_workers": 9, "min_workers": 2}, "new_pool": {}})
        master.signal(signal.SIGHUP)
        await wait_until(lambda: master.logged("config.reloaded"))
        assert await client.pool("new_pool").run("Echo", 5) == 5
        await wait_until(lambda: _workers(pool, 2))
        assert (await pool.info()).max_workers == 9
        assert [info.pool_name for info in await client.pools()] == [POOL, "new_pool"]
        with pytest.raises(UnknownPool):
            await client.pool("old_pool").spawn("Echo", timeout=1)
        assert await examine(client.store) == []
        master.write_config({POOL: {"max_workers": 0, "min_workers": 2}})
        master.signal(signal.SIGHUP)
        await wait_until(lambda: len(master.logged("config.reloaded")) == 2)
        assert (await pool.info()).max_workers == 9, "a faulty file changes nothing"
    assert "max_workers" in master.logged("config.not_applied")[0]["error"]


async def test_a_reload_with_other_types_replaces_the_workers(new_master: NewMaster) -> None:
    master = new_master({POOL: {"min_workers": 2}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.spawn("Echo", id="kept")
        before = {worker.process_id for worker in await pool.workers()}
        master.write_config({POOL: {"min_workers": 2, "agents": ["sample_agents:Echo", "sample_agents:Adder"]}})
        master.signal(signal.SIGHUP)
        await wait_until(lambda: _replaced(pool, before, 2), timeout=20)
        assert await pool.run("Adder", {"values": [1, 2]}) == 3
        assert await handle.run(4, timeout=10) == 4
        master.write_config({POOL: {"min_workers": 2, "agents": ["broken_import:Echo"]}})
        master.signal(signal.SIGHUP)
        await wait_until(lambda: len(master.logged("config.reloaded")) == 2)
        assert "module_that_does_not_exist" in master.logged("config.not_applied")[0]["error"]
        assert await pool.run("Adder", {"values": [1, 2]}) == 3, "the pool goes on as it was"


async def _replaced(pool, before: set[str], count: int) -> bool:
    workers = await pool.workers()
    return len(workers) == count and not before & {w.process_id for w in workers if w.status == "ready"}


def test_a_module_that_does_not_import_is_a_clear_error_at_start(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["broken_import:Echo"]}}).start(wait=False)
    assert master.process
    assert master.process.wait(20) == 1
    assert "module_that_does_not_exist" in master.output()
    assert "Traceback" in master.output()
    assert master.children() == []


async def test_a_preload_that_leaves_threads_makes_workers_exec(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["leaves_threads:Echo"]}}).start()
    assert "left-behind" in master.logged("zygote.exec_fallback")[0]["reason"]
    async with master.client() as client:
        handle = await client.pool(POOL).spawn("Echo")
        assert await handle.run(3) == 3
        assert await examine(client.store) == []


def test_one_master_per_data_directory(new_master: NewMaster) -> None:
    master = new_master().start()
    second = subprocess.run(
        [str(BIN / "agentpool-master"), "--config", str(master.config)],
        capture_output=True,
        text=True,
        env=clean_environ(),
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert f"pid {master.pid}" in second.stderr
    assert master.stop() == 0


def test_check_prints_every_error(new_master: NewMaster, tmp_path: Path) -> None:
    master = new_master({POOL: {"agents": ["broken_import:Echo"], "min_workers": 9, "max_workers": 3}})
    command = [str(BIN / "agentpool-master"), "check", "--config", str(master.config)]
    checked = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), timeout=60, check=False)
    assert checked.returncode == 1
    assert "min_workers" in checked.stdout
    master.write_config({POOL: {"agents": ["broken_import:Echo"]}, "good": {}})
    checked = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), timeout=60, check=False)
    assert checked.returncode == 1
    assert "module_that_does_not_exist" in checked.stdout
    master.write_config({"good": {}})
    checked = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_wrong_password_is_one_clear_line(new_master: NewMaster) -> None:
    first = new_master().start()
    second = new_master({POOL: {}}, redis={"url": first.url.replace("unix://", "unix://nobody:secret@")})
    second.start(wait=False)
    assert second.process
    assert second.process.wait(20) == 1
    refusals = [line for line in second.output().splitlines() if line.startswith("agentpool-master: ")]
    assert len(refusals) == 1
    assert "refused the login" in refusals[0]
    assert "secret" not in second.output()


async def test_a_users_package_named_workers_is_not_disturbed(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["workers.mine:Mine"]}})
    package = master.folder / "app" / "workers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("NAME = 'the user'\n")
    (package / "mine.py").write_text(
        "from workers import NAME\nfrom agentpool import Agent\n\n\n"
        "class Mine(Agent):\n    async def run(self, ctx, input):\n        return NAME\n"
    )
    master.write_config({POOL: {"agents": ["workers.mine:Mine"]}}, app_dir=str(package.parent))
    master.start()
    async with master.client() as client:
        assert await client.pool(POOL).run("Mine", None) == "the user"


async def test_processes_show_what_they_are(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        await client.pool(POOL).spawn("Echo")
    titles = [" ".join(process.cmdline()) for process in master.children()]
    assert any(title.startswith(f"agentpool-zygote {POOL} ") for title in titles)
    assert any(title.startswith(f"agentpool-worker {POOL} ") for title in titles)
    assert psutil.Process(master.pid).parent().pid == os.getpid()
