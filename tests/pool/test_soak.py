"""A thousand users on fifty agents, with failures and cancellations: nothing grows. `SOAK_SECONDS` says how long."""

import asyncio
import gc
import os
import random
import time
from pathlib import Path

import pytest
from pool.sample import check, check_closed, config, controlled, healthy

from agentpool.pool import AgentPool
from agentpool.pool.memory import process_memory_mb

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
async def test_nothing_grows() -> None:
    chance = random.Random(1)
    agent = controlled(healthy=healthy)
    # Long deadlines: on a busy machine a second may pass between two steps, and an agent cut short has not stopped.
    sizes = {"min_size": 10, "max_size": 50, "max_waiting": 2000, "recycle_threshold": 200}
    pool = AgentPool(agent, config(**sizes, stop_timeout=20, cancel_grace=20))
    end, seen = time.monotonic() + SECONDS, []

    async def request() -> None:
        async with pool.acquire(timeout=chance.choice([0.001, 0.05, 5])) as lease:
            if chance.random() < 0.01:
                agent.start_errors.append(OSError())
            if chance.random() < 0.005:
                agent.unhealthy.add(lease.agent_id)
            await lease.run(ValueError() if chance.random() < 0.1 else 1)
            await asyncio.sleep(chance.random() / 1000)

    async def user() -> None:
        while time.monotonic() < end:
            task = asyncio.create_task(request())
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() / 100)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(chance.random() / 100)

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(SECONDS / 20)
            agent.made.clear()  # the test's own notes
            agent.unhealthy &= set(pool._core.members)
            gc.collect()
            check(pool)
            seen.append((process_memory_mb() or 0, len(asyncio.all_tasks()), open_files()))

    await pool.open()
    await asyncio.gather(watch(), *(user() for _ in range(1000)))
    await pool.close()
    agent.made.clear()
    await check_closed(pool, agent)
    early, late = seen[len(seen) // 4], seen[-1]
    assert late[0] < early[0] * 1.1 + 5, f"memory in MB: {[round(it[0], 1) for it in seen]}"
    assert late[1] < 1000 * 3.5
    assert late[2] <= early[2] + 2
    assert pool.metrics().requests > SECONDS * 100
