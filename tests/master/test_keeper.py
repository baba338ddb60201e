"""A master that is told to stop before it has joined, or that leads while it has no zygote."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.master import APPS
from support.seeds import new_store, read_worker, seed_order, seed_pool

from agentpool.config import PoolSettings, Settings
from agentpool.master.host import Host
from agentpool.master.keeper import PoolKeeper
from agentpool.master.scope import PoolScope
from agentpool.master.zygotes import Zygote
from agentpool.protocol.zygote import Prepare
from agentpool.store import Store

ELSEWHERE = {"host": "elsewhere", "boot_id": "another", "pid_ns": "another", "pid": 1, "start_time": 1}


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with new_store(redis_url) as store:
        await seed_pool(store)
        yield store


async def new_keeper(store: Store, folder: Path) -> PoolKeeper:
    """A master that is about to join, where a worker and an order bear its id."""
    host = Host.find(folder, "h1")
    for worker in ("w1", "w2"):
        await seed_order(store, worker, master=host.master_id)
    assert await store.workers.start("p", "w1", "secret of w1", {"host_id": host.host_id, **ELSEWHERE})
    root = Settings(data_dir=str(folder), pools={"p": PoolSettings(agents=("a:B",))})
    return PoolKeeper(PoolScope(store, "p", host, root, "install"), lambda: 0)


async def test_what_another_process_beats_for_under_the_same_id_is_left_alone(store: Store, tmp_path: Path) -> None:
    keeper = await new_keeper(store, tmp_path)
    master, host_id = keeper.scope.master, keeper.scope.host.host_id
    await store.hosts.report("p", master, "the other", host_id=host_id, labels=(), fields=ELSEWHERE)
    await keeper.stop(asyncio.Event())
    assert [(await read_worker(store, worker))["status"] for worker in ("w1", "w2")] == ["starting", "ordered"]
    record = await store.hosts.one("p", master)
    assert record
    assert record.session == "the other"


async def test_what_an_earlier_process_left_is_given_back(store: Store, tmp_path: Path) -> None:
    keeper = await new_keeper(store, tmp_path)
    await keeper.stop(asyncio.Event())
    assert await store.workers.all("p") == []
    assert await store.hosts.one("p", keeper.scope.master) is None


async def test_while_a_dead_zygote_is_replaced_the_pool_keeps_its_types(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await store.locks.release("p", "leader", await store.connection.redis.get(store.keys.leader_lock("p")))
    root = Settings(
        data_dir=str(tmp_path),
        app_dir=str(APPS),
        pools={"p": PoolSettings(agents=("sample_agents:Echo",), min_workers=0)},
    )
    keeper = PoolKeeper(PoolScope(store, "p", Host.find(tmp_path, "h1"), root, "install"), lambda: 0)
    await keeper.open()
    try:
        await keeper._zygote.close()
        start, is_ready = Zygote.start, asyncio.Event()

        async def start_late(zygote: Zygote, prepare: Prepare) -> None:
            await is_ready.wait()
            await start(zygote, prepare)

        monkeypatch.setattr(Zygote, "start", start_late)
        mending = asyncio.create_task(keeper._ensure_zygote())
        await asyncio.sleep(0.01)
        await keeper.leadership.lead_once()
        assert await store.connection.redis.hkeys(store.keys.types("p")) == ["Echo"]
        is_ready.set()
        await mending
        assert keeper._zygote.alive
    finally:
        await keeper.leadership.resign()
        await keeper.abandon()
