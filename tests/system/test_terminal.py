"""On a terminal that is closed, and with a zygote that is frozen."""

import os
import pty
import signal
import subprocess
from collections.abc import Callable

import psutil
from support.master import BIN, Master, clean_environ
from support.wait import wait_until, wait_until_sync

NewMaster = Callable[..., Master]
POOL = "developer_pool"


def test_closing_the_terminal_drains_and_stops(new_master: NewMaster) -> None:
    master = new_master()
    ours, theirs = pty.openpty()
    master.process = subprocess.Popen(
        [str(BIN / "agentpool-master"), "--config", str(master.config), "--log-format", "json"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environ(),
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0),
    )
    os.close(theirs)
    shown = b""
    while b"master.ready" not in shown:
        shown += os.read(ours, 4096)
    workers = wait_until_sync(lambda: [p for p in psutil.process_iter() if _is_worker_of(p, master)])
    os.close(ours)
    assert master.process.wait(10) == 0
    assert not any(worker.is_running() for worker in workers)


def _is_worker_of(process: psutil.Process, master: Master) -> bool:
    try:
        parent = process.parent()
        return "agentpool-worker" in " ".join(process.cmdline()) and parent is not None and parent.ppid() == master.pid
    except psutil.Error:
        return False


async def test_a_frozen_zygote_is_replaced(new_master: NewMaster) -> None:
    master = new_master({POOL: {"boot_backoff": 0.1}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.spawn("Echo", id="kept")
        worker = (await pool.workers())[0]
        zygote = psutil.Process(worker.pid).parent()
        assert zygote is not None
        zygote.send_signal(signal.SIGSTOP)
        os.kill(worker.pid, signal.SIGKILL)
        await wait_until(lambda: _runs_elsewhere(pool, worker.process_id), timeout=20)
        assert not zygote.is_running()


async def _runs_elsewhere(pool, before: str) -> bool:
    agents = await pool.agents()
    return all(agent.status == "idle" and agent.process_id != before for agent in agents)


async def test_a_dead_master_no_longer_shows_as_leader(new_master: NewMaster) -> None:
    master = new_master(leader_lease=1.0).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        assert (await pool.stats()).leader
        master.kill()
        await wait_until(lambda: _leaderless(pool), timeout=5)
        assert (await pool.info()).leader == ""
    master.start()


async def _leaderless(pool) -> bool:
    return (await pool.stats()).leader == ""


async def test_a_worker_without_master_and_redis_can_be_told_to_leave(new_master: NewMaster) -> None:
    master = new_master({POOL: {"drain_timeout": 1.0, "agent_stop_timeout": 0.3}}).start()
    async with master.client() as client:
        await client.pool(POOL).spawn("Echo")
        worker = psutil.Process((await client.pool(POOL).workers())[0].pid)
    master.kill()
    for process in master.children():
        if "valkey" in process.name() or "redis" in process.name():
            process.kill()
    worker.terminate()
    await wait_until(lambda: not worker.is_running(), timeout=15)
