"""Workers whose master is gone: they leave after `orphan_timeout`, and not because Redis was away."""

import asyncio
from pathlib import Path

from support.door import door_to
from support.seeds import seed_host
from support.wait import wait_until
from support.worker_harness import MASTER, mastering

from agentpool.protocol.zygote import Exit, WorkerSettings
from agentpool_worker.heartbeat import Orphanhood


def test_only_time_with_answers_counts() -> None:
    alone = Orphanhood(WorkerSettings(pool="p", redis_url="", heartbeat_interval=1.0, orphan_timeout=5.0))
    assert not alone.is_over(7, 100.0)
    assert not any(alone.is_over(7, 100.0 + second) for second in (1, 2, 3))
    assert not any(alone.is_over(7, 200.0 + second) for second in range(5)), "Redis was away, which counts for nothing"
    assert not alone.is_over(8, 205.0), "the master beats"
    assert [alone.is_over(8, 205.0 + second) for second in range(1, 7)] == [False] * 4 + [True] * 2
    never = Orphanhood(WorkerSettings(pool="p", redis_url="", heartbeat_interval=1.0))
    assert not any(never.is_over(8, float(second)) for second in range(1000))


async def test_a_worker_without_a_master_finishes_hands_over_and_stops(redis_url: str, tmp_path: Path) -> None:
    async with mastering(redis_url, tmp_path, orphan_timeout=1.0) as master:
        await master.prepare("Counter", "Sleeper")
        await seed_host(master.store, MASTER)
        await master.fork()
        await master.spawn("a", "Counter")
        task = await master.submit(1.5, type="Sleeper")
        await master.until_running(task)
        for _ in range(8):
            await asyncio.sleep(0.2)
            await seed_host(master.store, MASTER)
        assert await master.field("w1", "status") == "ready", "its master beats"
        assert await master.zygote.exit_of("w1") == Exit.CLEAN
        assert (await master.outcome(task)).status == "succeeded"
        assert await master.until_agent("a", "pending")


async def test_that_redis_is_away_does_not_make_orphans(redis_url: str, tmp_path: Path) -> None:
    with door_to(redis_url) as door:
        async with mastering(door.url, tmp_path, orphan_timeout=1.0, command_timeout=0.5) as master:
            await master.prepare("Counter")
            await seed_host(master.store, MASTER)
            await master.fork()
            door.shut()
            await asyncio.sleep(1.5)
            door.open()
            await wait_until(lambda: _beats(master), timeout=5)
            for _ in range(5):
                await seed_host(master.store, MASTER)
                await asyncio.sleep(0.2)
            assert await master.field("w1", "status") == "ready"


async def _beats(master) -> bool:
    before = await master.field("w1", "last_beat")
    await asyncio.sleep(0.25)
    return await master.field("w1", "last_beat") != before
