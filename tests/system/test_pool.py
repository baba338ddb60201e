"""The main job: agents spawned, placed, run, ended; workers started, drained, scaled."""

import asyncio
import json
from collections.abc import Callable

import pytest
import redis
from support.master import Master
from support.wait import wait_until

from agentpool.doctor import examine
from agentpool.errors import AgentFailed, InvalidInput, NoCapacity, UnknownAgent

NewMaster = Callable[..., Master]
POOL = "developer_pool"


async def test_fifteen_spawns_make_two_workers_with_ten_and_five(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = [await pool.spawn("Echo") for _ in range(15)]
        stats = await pool.stats()
        assert (stats.process_count, stats.active_worker_processes, stats.total_capacity) == (2, 2, 20)
        assert (stats.used_capacity, stats.available_capacity, stats.agent_count) == (15, 5, 15)
        assert stats.utilization == 0.75
        assert sorted(worker.agent_count for worker in await pool.workers()) == [5, 10]
        assert await asyncio.gather(*(handle.run({"n": n}) for n, handle in enumerate(handles))) == [
            {"n": n} for n in range(15)
        ]
        with redis.Redis.from_url(master.url, decode_responses=True) as cli:
            assert len(cli.keys("agent:*")) == 15
            assert len(cli.keys("process:*")) == 2
            assert [free for _, free in cli.zrevrange(f"pool:{POOL}:processes", 0, -1, withscores=True)] == [5, 0]
            assert cli.hgetall(f"agent:{handles[0].id}")["status"] == "idle"
        assert await examine(client.store) == []
        for handle in handles:
            await handle.terminate()
            await handle.terminate()
        assert (await pool.stats()).used_capacity == 0
        with pytest.raises(UnknownAgent):
            await handles[0].info()
        assert await examine(client.store) == []


async def test_a_backlog_starts_all_the_workers_it_needs(new_master: NewMaster) -> None:
    master = new_master({POOL: {"min_workers": 0, "max_workers": 3, "agents_per_worker": 5}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await asyncio.gather(*(pool.spawn("Echo") for _ in range(15)))
        assert (await pool.stats()).process_count == 3
        with pytest.raises(NoCapacity, match="max_workers"):
            await pool.spawn("Echo", timeout=0.3)
        assert (await pool.stats()).agent_count == 15
        assert await examine(client.store) == []


async def test_packing_fills_one_worker_before_the_next(new_master: NewMaster) -> None:
    master = new_master({POOL: {"min_workers": 2, "agents_per_worker": 4, "placement": "pack"}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        for _ in range(4):
            await pool.spawn("Echo")
        assert sorted(worker.agent_count for worker in await pool.workers()) == [0, 4]


async def _ready(pool, count: int) -> bool:
    return (await pool.stats()).total_capacity > 0 and (await pool.stats()).active_worker_processes == count


async def test_tasks_by_type_run_on_any_worker_and_typed_input_is_checked(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["sample_agents:Adder", "sample_agents:Place"]}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        assert await pool.run("Adder", {"values": [1, 2, 3]}) == 6
        with pytest.raises(InvalidInput) as caught:
            await pool.run("Adder", {"values": [1, "two"]})
        assert caught.value.path == "$.values[1]"
        places = await asyncio.gather(*(pool.run("Place", None) for _ in range(30)))
        assert {place["pid"] for place in places} <= {worker.pid for worker in await pool.workers()}
        assert await examine(client.store) == []


async def test_draining_moves_agents_with_their_state(new_master: NewMaster) -> None:
    master = new_master({POOL: {"agents": ["sample_agents:Counter", "sample_agents:Sleeper"]}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        counter = await pool.spawn("Counter", id="counter")
        assert [await counter.run(None) for _ in range(3)] == [1, 2, 3]
        sleeper = await pool.spawn("Sleeper", id="sleeper")
        asleep = asyncio.create_task(sleeper.run(0.5))
        await wait_until(lambda: _status(sleeper, "active"))
        before = (await counter.info()).process_id
        await pool.drain(before)
        assert await asleep == "slept"
        await wait_until(lambda: _moved(counter, before))
        await wait_until(lambda: _moved(sleeper, before))
        assert await counter.run(None) == 4
        await wait_until(lambda: _gone(pool, before))
        assert await examine(client.store) == []
    assert [line["how"] for line in master.logged("worker.exited")] == ["exited with 0 (clean)"]


async def _status(handle, status: str) -> bool:
    return (await handle.info()).status == status


async def _moved(handle, before: str) -> bool:
    info = await handle.info()
    return info.status == "idle" and info.process_id != before


async def _gone(pool, worker_id: str) -> bool:
    return worker_id not in {worker.process_id for worker in await pool.workers()}


async def test_scale_keeps_a_floor_and_idle_workers_leave(new_master: NewMaster) -> None:
    master = new_master({POOL: {"worker_idle_timeout": 0.5}}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.scale(3)
        await wait_until(lambda: _ready(pool, 3))
        with pytest.raises(InvalidInput, match="1 to 4"):
            await pool.scale(9)
        await asyncio.sleep(1.5)
        assert (await pool.stats()).process_count == 3, "the floor keeps idle workers"
        await pool.scale(1)
        await wait_until(lambda: _ready(pool, 1))
        agents = [await pool.spawn("Echo") for _ in range(11)]
        assert (await pool.stats()).process_count == 2
        for agent in agents:
            await agent.terminate()
        await wait_until(lambda: _ready(pool, 1), timeout=10)


async def test_idle_agents_are_let_go(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        kept = await pool.spawn("Echo", id="kept")
        brief = await pool.spawn("Echo", id="brief", max_idle_time=0.6)
        for _ in range(4):
            await asyncio.sleep(0.25)
            await brief.run(1)
        await wait_until(lambda: _agents(pool, [kept.id]))
        assert (await pool.stats()).used_capacity == 1


async def _agents(pool, ids: list[str]) -> bool:
    return [agent.agent_id for agent in await pool.agents()] == ids


async def test_an_agent_that_cannot_start_is_given_up(new_master: NewMaster) -> None:
    settings = {"agents": ["sample_agents:NeverStarts"], "boot_backoff": 0.05, "boot_failures_max": 3}
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        with pytest.raises(AgentFailed, match="no luck today"):
            await pool.spawn("NeverStarts")
        assert (await pool.stats()).agent_count == 0
        names = [event.type async for event in pool.events()]
        assert names.count("agent.start_failed") == 2
        assert "agent.failed" in names
        assert await examine(client.store) == []


async def test_a_pool_on_the_brink_asks_for_a_worker_when_thresholds_are_set(new_master: NewMaster) -> None:
    settings = {"scale_up_threshold": 0.8, "scale_cooldown": 0.2, "agents_per_worker": 5}
    master = new_master({POOL: settings}).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        for _ in range(4):
            await pool.spawn("Echo")
        await wait_until(lambda: _ready(pool, 2))


async def test_commands_can_be_followed_as_json(new_master: NewMaster) -> None:
    master = new_master().start()
    with redis.Redis.from_url(master.url, decode_responses=True) as cli, cli.pubsub() as pubsub:
        pubsub.subscribe(f"pool:{POOL}:commands")
        pubsub.get_message(timeout=5)
        async with master.client() as client:
            handle = await client.pool(POOL).spawn("Echo", id="seen")
        message = json.loads(pubsub.get_message(timeout=5)["data"])
        assert (message["type"], message["agent_id"]) == ("spawn", handle.id)
        assert message["process_id"]
