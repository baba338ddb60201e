"""How long tasks are away when their worker is killed, and another one has room for them.

Two workers are filled with tasks that sleep, and those of one are cancelled; then the other is killed. Each task writes
down where and when it runs, so the end is known to the microsecond though it is looked for each few milliseconds.
"""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import uvloop

from agentpool.client import Pool, TaskHandle, connect
from agentpool.master.host import open_process
from bench.figures import extent, median, spread
from bench.floors import helper_times
from bench.running import POOL, BenchError, RunningMaster, wait_for
from bench.tasks.agents import Announcing
from bench.tasks.own import own_master
from bench.tasks.sizes import Sizes

__all__ = ["measure"]

WORKERS = 2
DEADLINE_S = 10.0
LOOK_S = 0.004


def measure(sizes: Sizes) -> tuple[tuple[float, ...], str]:
    """Return the median time in ms until all tasks of a killed worker run on the other."""
    slots = sizes.slots_killed
    with (
        own_master(agents_per_worker=slots) as master,
        tempfile.TemporaryDirectory(prefix="agentpool-bench-") as folder,
    ):
        times = [uvloop.run(_kill_one(master, Path(folder) / str(number), slots)) for number in range(sizes.kills)]
    floor = spread(helper_times("death", 20), "ms")
    note = f"{extent(times, 'ms')}; kill → pidfd tells {floor}"
    return (median(times),), note


async def _kill_one(master: RunningMaster, path: Path, slots: int) -> float:
    """Return the time in ms from the signal to the start of the last task."""
    await asyncio.to_thread(wait_for, lambda: master.is_steady(WORKERS), f"{WORKERS} workers are ready")
    path.touch()
    async with connect(master.url) as client:
        pool = client.pool(POOL)
        names = [f"task{number}" for number in range(WORKERS * slots)]
        handles = dict(
            zip(names, await pool.submit_many(Announcing, [(str(path), name) for name in names]), strict=True)
        )
        try:
            victim, lost = await _fill_one(pool, path, handles, slots)
            await asyncio.sleep(random.uniform(0.3, 0.8))  # at any moment of the loops that turn once a second
            began = _kill(master, victim)
            return (await _all_again(path, lost, victim) - began) / 1e6
        finally:
            await asyncio.gather(*(handle.cancel() for handle in handles.values()))
            await _until_running(pool, 0)


async def _fill_one(pool: Pool, path: Path, handles: dict[str, TaskHandle], slots: int) -> tuple[int, set[str]]:
    """Wait until each worker runs its part, and empty all but one; returns its pid and the names of its tasks."""
    deadline = time.monotonic() + DEADLINE_S
    while len(_moments(path)) < len(handles):
        if time.monotonic() > deadline:
            raise BenchError(f"{len(_moments(path))} of {len(handles)} tasks run")
        await asyncio.sleep(LOOK_S)
    by_worker: dict[int, set[str]] = defaultdict(set)
    for pid, name, _ in _moments(path):
        by_worker[pid].add(name)
    victim = random.choice(list(by_worker))
    lost = by_worker[victim]
    if len(lost) != slots:
        raise BenchError(f"{len(lost)} of {slots} slots of a worker are used")
    await asyncio.gather(*(handle.cancel() for name, handle in handles.items() if name not in lost))
    await _until_running(pool, slots)
    return victim, lost


def _kill(master: RunningMaster, pid: int) -> int:
    """Kill a worker; returns the moment in ns."""
    started = dict(master.worker_pids().values()).get(pid)
    pidfd = started and open_process(pid, started)
    if not pidfd:
        raise BenchError(f"process {pid} is no worker")
    began = time.time_ns()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    return began


async def _all_again(path: Path, lost: set[str], victim: int) -> int:
    """Return the moment in ns at which the last of the tasks began to run elsewhere."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        again = {name: moment for pid, name, moment in _moments(path) if name in lost and pid != victim}
        if len(again) == len(lost):
            return max(again.values())
        await asyncio.sleep(LOOK_S)
    raise BenchError(f"{len(lost) - len(again)} of {len(lost)} tasks did not run again within {DEADLINE_S:g} s")


def _moments(path: Path) -> Sequence[tuple[int, str, int]]:
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(int(pid), name, int(moment)) for pid, name, moment in rows]


async def _until_running(pool: Pool, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (running := (await pool.stats()).running_tasks) != count:
        if time.monotonic() > deadline:
            raise BenchError(f"{running} tasks run, not {count}")
        await asyncio.sleep(LOOK_S)
