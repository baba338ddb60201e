"""Start orders are carried out once, whoever comes first to them; processes here are real, but no workers."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.seeds import new_store, read_worker, seed_order, seed_pool

from agentpool.config import PoolSettings, Settings
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.host import Host, start_time
from agentpool.master.scope import PoolScope
from agentpool.master.starter import Starter
from agentpool.master.worker_process import WorkerProcess
from agentpool.protocol.records import HostsView
from agentpool.protocol.zygote import Fork


class Host1:
    """A starter on a host of its own, and what it forked."""

    def __init__(self, store, folder: Path) -> None:
        self.store, self.host = store, Host.find(folder, "h1")
        root = Settings(data_dir=str(folder), pools={"p": PoolSettings(agents=("a:B",))})
        scope = PoolScope(store, "p", self.host, root, "install")
        self.boots = Boots(failures_max=3, backoff=0.1, backoff_max=1)
        self.crew = Crew("p", lambda: None)
        self.starter = Starter(scope, self.crew, self.boots, self.fork)
        self.forked: list[Fork] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    async def fork(self, order: Fork) -> tuple[WorkerProcess, int]:
        self.forked.append(order)
        await asyncio.sleep(0.01)
        process = subprocess.Popen(["sleep", "60"])
        self.processes.append(process)
        pidfd = os.pidfd_open(process.pid)
        return WorkerProcess(order.worker_id, process.pid, pidfd, self.crew.note_end), start_time(process.pid)

    def end(self) -> None:
        self.crew.forget()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
async def host(redis_url: str, tmp_path: Path) -> AsyncIterator[Host1]:
    async with new_store(redis_url) as store:
        host = Host1(store, tmp_path)
        await seed_pool(store)
        await seed_order(store, "w1", master=host.host.master_id)
        yield host
        host.end()


async def test_the_leaders_own_order_is_not_taken_from_under_it(host: Host1, monkeypatch: pytest.MonkeyPatch) -> None:
    take_order, asks = host.store.hosts.take_order, asyncio.Event()

    async def take_late(*words: str) -> str:
        asks.set()
        await asyncio.sleep(0.005)
        return await take_order(*words)

    monkeypatch.setattr(host.store.hosts, "take_order", take_late)
    looking = asyncio.create_task(host.starter.start_once())
    await asks.wait()
    await asyncio.gather(host.starter.carry_out(("w1", "secret of w1")), looking)
    assert [order.worker_id for order in host.forked] == ["w1"]
    record = await read_worker(host.store, "w1")
    assert (record["status"], record["secret"]) == ("starting", host.forked[0].secret)
    assert record["pid"] == str(host.processes[0].pid)


async def test_an_order_that_the_leader_has_begun_since_the_look_is_left(
    host: Host1, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, carrying = host.store.hosts.view, []

    async def view_before_the_leader_begins(pool: str) -> HostsView:
        seen = await view(pool)
        carrying.append(asyncio.create_task(host.starter.carry_out(("w1", "secret of w1"))))
        return seen

    monkeypatch.setattr(host.store.hosts, "view", view_before_the_leader_begins)
    await host.starter.start_once()
    await asyncio.gather(*carrying)
    assert [order.secret for order in host.forked] == ["secret of w1"]
    assert (await read_worker(host.store, "w1"))["pid"] == str(host.processes[0].pid)


async def test_orders_of_others_are_taken_and_those_for_others_left(host: Host1) -> None:
    await seed_order(host.store, "w2", master="another")
    await host.starter.start_once()
    await host.starter.start_once()
    assert [order.worker_id for order in host.forked] == ["w1"]
    assert (await read_worker(host.store, "w2"))["status"] == "ordered"


async def test_what_registered_meanwhile_is_adopted(host: Host1) -> None:
    process = subprocess.Popen(["sleep", "60"])
    host.processes.append(process)
    mine = {"host_id": host.host.host_id, "boot_id": host.host.boot_id, "pid_ns": host.host.pid_ns}
    fields = {"pid": process.pid, "start_time": start_time(process.pid), **mine}
    assert await host.store.workers.start("p", "w1", "secret of w1", fields)
    await host.starter.start_once()
    assert host.forked == []
    assert list(host.crew.processes) == ["w1"]


async def test_a_host_that_gave_up_gives_orders_back(host: Host1) -> None:
    for _ in range(3):
        host.boots.failed("it does not start")
    await host.starter.start_once()
    assert host.forked == []
    assert "w1" in host.crew.dead


async def test_a_master_that_stops_leaves_no_order_behind(host: Host1) -> None:
    await host.starter.give_up_orders()
    assert str(host.crew.dead["w1"]) == "gone: its master stops"
