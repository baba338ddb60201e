"""The server restarts, with and without its latest writes; is frozen; is away. Real processes, real files."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.master import Master
from support.outage import HarmedServer
from support.wait import wait_until

from agentpool.client import connect
from agentpool.doctor import examine
from agentpool.errors import RedisUnavailable, UnknownPool

NewMaster = Callable[..., Master]
POOL = "developer_pool"
AGENTS = ["sample_agents:Echo", "sample_agents:Counter", "sample_agents:Sleeper", "sample_agents:Place"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HarmedServer]:
    harmed = HarmedServer(tmp_path / "redis").start()
    yield harmed
    harmed.stop()


async def _all_idle(pool, count: int) -> bool:
    try:
        agents, stats = await pool.agents(), await pool.stats()
    except UnknownPool:
        return False  # its master has yet to write it again
    return (
        len(agents) == count
        and all(agent.status == "idle" for agent in agents)
        and stats.process_count == stats.active_worker_processes
        and not stats.starting_workers
    )


async def test_what_a_server_lost_with_its_latest_writes_is_told_to_it_again(
    server: HarmedServer, new_master: NewMaster
) -> None:
    master = new_master(
        {POOL: {"agents": AGENTS, "agents_per_worker": 6, "max_workers": 2}}, redis={"url": server.url}
    ).start()
    async with connect(server.url) as client:
        pool = client.pool(POOL)
        old = [await pool.spawn("Counter", id=f"old-{n}") for n in range(4)]
        before = await asyncio.gather(*(agent.run(None) for agent in old))
        server.remember()

        new = [await pool.spawn("Counter", id=f"new-{n}") for n in range(4)]
        await old[0].terminate()
        assert await asyncio.gather(*(agent.run(None) for agent in new)) == [1] * 4
        done = await pool.submit_many("Place", [None] * 20)
        results = await asyncio.gather(*(handle.result(10) for handle in done))
        at_work = [asyncio.create_task(pool.run("Sleeper", 2)), asyncio.create_task(new[0].run(None))]
        handle = await pool.submit("Sleeper", 2)
        await asyncio.sleep(0.3)
        workers = {worker.process_id for worker in await pool.workers()}
        fences = {agent.agent_id: agent.incarnation for agent in await pool.agents()}
        with server.client() as cli:
            fence = int(cli.hget(f"pool:{POOL}", "fence") or 0)
        assert len(workers) == 2

        server.lose()
        server.start()
        returned = time.monotonic()
        await wait_until(lambda: _all_idle(pool, 7), timeout=10, message=master.output)
        took = time.monotonic() - returned
        assert {worker.process_id for worker in await pool.workers()} == workers, "nobody was reaped, nobody started"
        assert await asyncio.gather(*at_work) == ["slept", 2]
        assert await handle.result(10) == "slept"
        assert await asyncio.gather(*(agent.run(None) for agent in new)) == [3, 2, 2, 2], "they went on as they were"
        assert await asyncio.gather(*(agent.run(None) for agent in old[1:])) == [2] * 3
        assert before == [1] * 4
        assert {"old-0"} & {agent.agent_id.partition("/")[2] for agent in await pool.agents()} == set()
        again = [bytes((await client.store.tasks.read(one.id)).result) for one in done]
        assert [str(result["pid"]) in text.decode() for result, text in zip(results, again, strict=True)] == [True] * 20
        for agent in await pool.agents():
            assert agent.incarnation >= fences[agent.agent_id]
        with server.client() as cli:
            assert int(cli.hget(f"pool:{POOL}", "fence") or 0) >= fence
        assert await examine(client.store) == []
        assert took < 5, took
    assert master.logged("server.restarted")


async def test_what_ended_while_the_server_was_away_is_not_run_again_though_its_lease_is_lost(
    server: HarmedServer, new_master: NewMaster
) -> None:
    settings = {"agents": ["task_agents:Noted"], "agents_per_worker": 6, "max_workers": 1}
    master = new_master({POOL: settings}, redis={"url": server.url}).start()
    notes = master.folder / "notes"
    async with connect(server.url) as client:
        pool = client.pool(POOL)
        await pool.submit_many("Noted", [[str(notes), 1.0]] * 6)
        later = [await pool.submit("Noted", [str(notes), 1.0]) for _ in range(18)]
        await wait_until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= 6)
        await asyncio.sleep(0.3)
        server.remember()
        await wait_until(lambda: len(notes.read_text().splitlines()) >= 12)
        server.lose()
        await asyncio.sleep(1.5)
        server.start()
        await asyncio.gather(*(handle.result(20) for handle in later))
        assert await examine(client.store) == []
    assert len(notes.read_text().splitlines()) == 24, "each ran once"


@pytest.mark.parametrize("pauses", [(0.0,), pytest.param((5.5, 0.0), marks=pytest.mark.chaos)])
async def test_a_server_that_comes_back_empty_is_told_everything(
    server: HarmedServer, new_master: NewMaster, pauses: tuple[float, ...]
) -> None:
    master = new_master({POOL: {"agents": AGENTS}}, redis={"url": server.url}).start()
    async with connect(server.url) as client:
        pool = client.pool(POOL)
        agents = await asyncio.gather(*(pool.spawn("Counter", id=f"a{n}") for n in range(12)))
        assert await asyncio.gather(*(agent.run(None) for agent in agents)) == [1] * 12
        running = [asyncio.create_task(pool.run("Sleeper", 1)) for _ in range(4)]
        await asyncio.sleep(0.3)
        workers = {worker.process_id for worker in await pool.workers()}
        for pause in pauses:  # the second outage finds nothing left of the first
            server.lose_everything()
            server.start()
            await wait_until(lambda: _all_idle(pool, 12), timeout=10, message=master.output)
            await asyncio.sleep(pause)
        assert await asyncio.gather(*running) == ["slept"] * 4
        assert await asyncio.gather(*(agent.run(None) for agent in agents)) == [2] * 12
        assert {worker.process_id for worker in await pool.workers()} >= workers
        assert await examine(client.store) == []


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ("SIGSTOP", 3.0),
        pytest.param("SIGSTOP", 30.0, marks=pytest.mark.chaos),
        pytest.param("CLIENT PAUSE", 5.0, marks=pytest.mark.chaos),
    ],
)
async def test_a_frozen_server_reaps_nobody(
    server: HarmedServer, new_master: NewMaster, how: str, seconds: float
) -> None:
    settings = {"agents": AGENTS, "heartbeat_timeout": 1.5}
    redis = {"url": server.url, "command_timeout": 1.0}
    master = new_master({POOL: settings}, redis=redis).start()
    async with connect(server.url) as client:
        pool = client.pool(POOL)
        agents = await asyncio.gather(*(pool.spawn("Counter", id=f"a{n}") for n in range(5)))
        run = asyncio.create_task(agents[0].run(None))
        await run
        workers = {worker.process_id for worker in await pool.workers()}
        if how == "SIGSTOP":
            server.signal(signal.SIGSTOP)
        else:
            with server.client() as cli:
                cli.client_pause(int(1000 * seconds), all=True)
        began = time.monotonic()
        with pytest.raises(RedisUnavailable, match=r"does not answer.*agentpool-master check"):
            await pool.run("Echo", 1, timeout=1.0)
        await asyncio.sleep(max(0, seconds - (time.monotonic() - began)))
        if how == "SIGSTOP":
            server.signal(signal.SIGCONT)
        await wait_until(lambda: _all_idle(pool, 5), timeout=10, message=master.output)
        assert await asyncio.gather(*(agent.run(None) for agent in agents)) == [2, 1, 1, 1, 1]
        await asyncio.sleep(2)
        assert {worker.process_id for worker in await pool.workers()} == workers
        assert master.logged("worker.reaped") == []
        assert await examine(client.store) == []
