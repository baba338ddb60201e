"""What workers cost that do nothing but beat, after they have worked."""

import asyncio
import time

from agentpool.client import Client, connect
from bench.figures import Figure, median, show
from bench.floors import bare_beats_percent
from bench.processes import cpu_seconds, private_bytes
from bench.running import POOL, BenchError, RunningMaster
from bench.sizes import Sizes

__all__ = ["measure"]

MB = 1_000_000


def measure(sizes: Sizes) -> list[Figure]:
    """Return memory and CPU use of idle workers."""
    count = sizes.idlers
    with RunningMaster(min_workers=count, max_workers=count, agents_per_worker=10, heartbeat_interval=1.0) as master:
        asyncio.run(_work(master, sizes))
        workers = [pid for pid, _ in master.worker_pids().values()]
        groups = {
            "workers": [*workers, *master.zygote_pids],
            "master": [master.pid],
            "server": [master.server_pid],
        }
        shares = _watch(groups, sizes.idle_s, sizes.runs)
        memory = [private_bytes(pid) / MB for pid in workers]
        zygote = sum(private_bytes(pid) for pid in master.zygote_pids) / MB
        floor = bare_beats_percent(master.url, count, sizes.beats_s)
    done = f"after {sizes.tasks_each} runs and {sizes.idle_s:g} s"
    return [
        Figure(
            what=f"{count} idle workers: private memory of each {done}, median / max",
            unit="MB",
            values=(median(memory), max(memory)),
            must=(15, 15),
            aim=(9, 9),
            floor=f"zygote {show((zygote,), 'MB')}",
        ),
        Figure(
            what=f"{count} idle workers and zygote: CPU of all together, of one core",
            unit="%",
            values=(median(shares["workers"]),),
            must=(15,),
            aim=(8,),
            floor=f"bare redis-py PINGs of {count} processes {show((floor,), '%')}",
        ),
        Figure(
            what="CPU of server / master meanwhile",
            unit="%",
            values=(median(shares["server"]), median(shares["master"])),
        ),
    ]


async def _work(master: RunningMaster, sizes: Sizes) -> None:
    """Put one agent on each worker, and have each do its tasks."""
    async with connect(master.url) as client:
        await asyncio.gather(*(_spawn_and_run(client, sizes.tasks_each) for _ in range(sizes.idlers)))
        records = await client.pool(POOL).agents()
    if len({record.process_id for record in records}) != sizes.idlers:
        raise BenchError("the agents are not spread over all workers")


async def _spawn_and_run(client: Client, tasks: int) -> None:
    agent = await client.pool(POOL).spawn("Idle", timeout=60)
    for number in range(tasks):
        await agent.run(number)


def _watch(groups: dict[str, list[int]], seconds: float, windows: int) -> dict[str, list[float]]:
    """Return the CPU use of each group, in percent of a core, in each of several windows of the time."""
    shares: dict[str, list[float]] = {name: [] for name in groups}
    for _ in range(windows):
        before = {name: cpu_seconds(pids) for name, pids in groups.items()}
        began = time.monotonic()
        time.sleep(seconds / windows)
        took = time.monotonic() - began
        for name, pids in groups.items():
            shares[name].append(100 * (cpu_seconds(pids) - before[name]) / took)
    return shares
