"""How long ten agents are away when their worker is killed: with another worker standing by, and without.

The end is read from the pool's event stream by a blocking read, so nothing is polled while it is measured; the
agents' records are checked afterwards.
"""

import asyncio
import os
import random
import signal
import time
from typing import Any

from agentpool.client import connect
from agentpool.master.host import open_process
from agentpool.protocol.events import EventName
from bench.figures import Figure, median, spread
from bench.floors import helper_times
from bench.running import POOL, BenchError, RunningMaster, wait_for
from bench.sizes import Sizes

__all__ = ["measure"]

AGENTS = 10
DEADLINE_S = 20.0


def measure(sizes: Sizes) -> list[Figure]:
    """Return the figures with a spare worker and without one."""
    return [
        _figure("kill -9 of a worker with 10 agents → all 10 run on the one standing by, median / max", sizes, 2),
        _figure("the same with none standing by: a worker is started first, median / max", sizes, 1),
    ]


def _figure(what: str, sizes: Sizes, workers: int) -> Figure:
    with RunningMaster(min_workers=workers, max_workers=4, agents_per_worker=AGENTS, placement="pack") as master:
        agents = asyncio.run(_spawn(master.url))
        times = [_kill_one(master, agents, workers, sizes.pause_s) for _ in range(sizes.kills)]
    return Figure(
        what=what,
        unit="ms",
        values=(median(times), max(times)),
        must=(100, 300),
        aim=(50, 120),
        floor=f"kill → pidfd tells {spread(helper_times('death', sizes.floor_rounds), 'ms')}",
    )


async def _spawn(url: str) -> list[str]:
    async with connect(url) as client:
        return [(await client.pool(POOL).spawn("Idle")).id for _ in range(AGENTS)]


def _kill_one(master: RunningMaster, agents: list[str], workers: int, pause_s: float) -> float:
    """Kill the worker that has all agents; returns the time in ms until all run again."""
    wait_for(lambda: master.is_steady(workers), f"{workers} workers are ready")
    time.sleep(random.uniform(1.5, 4) * pause_s)  # at any moment of the loops that turn once a second
    victim = _worker_of(master, agents)
    pid, started = master.worker_pids()[victim]
    pidfd = open_process(pid, started)
    if pidfd is None:
        raise BenchError(f"worker {victim} has no process")
    events = master.keys.events(POOL)
    last = master.redis.xrevrange(events, count=1)[0][0]
    began = time.perf_counter()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    took = _until_started(master.redis, events, last, set(agents)) - began
    os.close(pidfd)
    if _worker_of(master, agents) == victim:
        raise BenchError("the agents are still where they were")
    return took * 1000


def _until_started(client: Any, stream: str, last: str, missing: set[str]) -> float:
    """Return the moment at which the last of the agents was said to have started."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for _, rows in client.xread({stream: last}, block=1000) or ():
            moment = time.perf_counter()
            last = rows[-1][0]
            missing -= {row["agent_id"] for _, row in rows if row["type"] == EventName.AGENT_STARTED}
        if not missing:
            return moment
    raise BenchError(f"{len(missing)} agents did not come back within {DEADLINE_S:g} s")


def _worker_of(master: RunningMaster, agents: list[str]) -> str:
    """Return the worker that has all agents, idle."""
    pipe = master.redis.pipeline(transaction=False)
    for agent in agents:
        pipe.hmget(master.keys.agent(agent), "process_id", "status")
    states = {tuple(state) for state in pipe.execute()}
    if len(states) != 1 or (state := states.pop())[1] != "idle":
        raise BenchError(f"the agents are not idle on one worker: {states}")
    return str(state[0])
