"""A long run in which nothing may grow (`make soak`, SOAK_SECONDS=…)."""

import asyncio
import os
import time
from collections.abc import Callable

import psutil
import pytest
from support.master import Master

from agentpool.doctor import examine

NewMaster = Callable[..., Master]
POOL = "developer_pool"
SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
async def test_nothing_grows(new_master: NewMaster) -> None:
    master = new_master({POOL: {"max_workers": 3}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo", id=f"agent-{n}") for n in range(15)))
        sizes: list[dict[str, tuple[int, int]]] = []
        for _ in range(5):
            until = time.monotonic() + SECONDS / 5
            while time.monotonic() < until:
                await asyncio.gather(*(pool.agent(f"agent-{n}").run(n, timeout=20) for n in range(15)))
                handles = await asyncio.gather(*(pool.spawn("Echo", timeout=20) for _ in range(10)))
                await asyncio.gather(*(handle.terminate() for handle in handles))
            sizes.append(_sizes(master))
        assert await examine(client.store) == []
    print(sizes)
    for title, (memory, fds) in sizes[-1].items():
        # The server keeps outcomes and ends of agents for an hour: it grows until then, by design.
        if title in sizes[1] and "valkey" not in title and "redis" not in title:
            assert memory < sizes[1][title][0] * 1.15 + 4_000_000, (title, sizes)
            assert fds <= sizes[1][title][1] + 5, (title, sizes)


def _sizes(master: Master) -> dict[str, tuple[int, int]]:
    processes = [psutil.Process(master.pid), *master.children()]
    return {" ".join(p.cmdline())[:80]: (p.memory_full_info().uss, p.num_fds()) for p in processes}
