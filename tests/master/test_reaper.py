"""What the leader gives up by time, and for how long it leaves that to the worker's own master."""

import asyncio
from pathlib import Path

from support.seeds import MASTER, new_store, read_worker, seed_host, seed_order, seed_pool, seed_worker
from support.wait import wait_until

from agentpool.config import PoolSettings, Settings
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.host import Host
from agentpool.master.reaper import Reaper, silence_allowed
from agentpool.master.scope import PoolScope


def reaper_of(store, folder: Path, token: str, **settings: object) -> Reaper:
    pool = PoolSettings(agents=("a:B",), **settings)
    scope = PoolScope(store, "p", Host.find(folder, "h1"), Settings(data_dir=str(folder), pools={"p": pool}), "install")
    scope.token = token
    return Reaper(scope, Crew("p", lambda: None), Boots(failures_max=3, backoff=0.1, backoff_max=1))


async def test_orders_of_a_master_that_is_gone_are_taken_back_soon(redis_url: str, tmp_path: Path) -> None:
    async with new_store(redis_url) as store:
        token = await seed_pool(store)
        reaper = reaper_of(store, tmp_path, token, heartbeat_timeout=0.3)
        for worker, master in (("w1", "gone"), ("w2", "alive"), ("w3", "gone")):
            await seed_order(store, worker, master=master)
        assert await store.workers.start("p", "w3", "secret of w3", {"pid": 1})

        async def taken_back() -> bool:
            await seed_host(store, "alive")
            await store.locks.lead("p", MASTER, lease_ms=60_000, gap_ms=60_000, hold_ms=0)
            await reaper.take_back_orders(await store.hosts.view("p"))
            return await read_worker(store, "w1") == {}

        assert not await taken_back(), "it may only be late"
        await wait_until(taken_back)
        assert (await read_worker(store, "w2"))["status"] == "ordered"
        assert (await read_worker(store, "w3"))["status"] == "starting", "its process may be about to register"


async def test_a_silent_worker_is_left_to_its_own_master_while_that_lives(redis_url: str, tmp_path: Path) -> None:
    async with new_store(redis_url) as store:
        token = await seed_pool(store)
        reaper = reaper_of(store, tmp_path, token, heartbeat_timeout=0.2, block_timeout=60.0)
        await seed_worker(store, "w1", master="m2")
        for _ in range(5):
            await asyncio.sleep(0.1)
            await seed_host(store, "m2")
            await store.locks.lead("p", MASTER, lease_ms=60_000, gap_ms=60_000, hold_ms=0)
            await reaper.reap_silent_workers(await store.hosts.view("p"))
        assert (await read_worker(store))["status"] == "ready"

        async def reaped() -> bool:
            await store.locks.lead("p", MASTER, lease_ms=60_000, gap_ms=60_000, hold_ms=0)
            await reaper.reap_silent_workers(await store.hosts.view("p"))
            return await read_worker(store) == {}

        await wait_until(reaped)


def test_how_long_silence_is_allowed() -> None:
    settings = PoolSettings(agents=("a:B",), heartbeat_timeout=10.0, block_timeout=30.0, start_timeout=20.0)

    def allowed(*, is_starting: bool, has_master: bool) -> float:
        return silence_allowed(is_starting=is_starting, has_master=has_master, settings=settings)

    assert allowed(is_starting=False, has_master=False) == 10.0
    assert allowed(is_starting=True, has_master=False) == 10.0
    assert allowed(is_starting=True, has_master=True) == 20.0
    assert allowed(is_starting=False, has_master=True) == 50.0, "not for ever"
