"""The event stream and what the doors add to scripts: paging, lists, things that have no script."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.seeds import MASTER, new_store, seed_agent, seed_order, seed_pool, seed_running_agent, seed_worker

from agentpool.errors import UnknownAgent, UnknownWorker
from agentpool.protocol.events import Event, EventName
from agentpool.store import Store


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with new_store(redis_url) as store:
        yield store


# -- events -----------------------------------------------------------------------------------------------------


async def test_events_are_read_oldest_first_and_limited(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    events = await store.events.read("p", 3)
    assert [event.type for event in events] == ["agent.spawned", "agent.placed", "agent.started"]
    assert events[1] == Event(
        id=events[1].id, pool_name="p", type="agent.placed", at=events[1].at, agent_id="p/a1", process_id="w1"
    )
    assert events[0].detail == "R"
    assert await store.events.read("unknown") == []


async def test_followers_see_what_comes_from_now_on_in_all_their_pools(store: Store) -> None:
    await seed_pool(store, "p")
    following = store.events.follow(["p", "q"], interval=0.005)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.03)
    assert not first.done(), "what was before is not shown"
    await seed_pool(store, "q")
    await seed_agent(store, "a1", "p")
    seen = [await first] + [await anext(following) for _ in range(3)]
    assert sorted((event.pool_name, event.type) for event in seen) == [
        ("p", "agent.spawned"),
        ("p", "agent.waiting"),
        ("q", "leader.elected"),
        ("q", "pool.applied"),
    ]
    await store.events.add("p", EventName.WORKER_BLOCKED, process_id="w1", detail="an agent blocks it")
    last = await anext(following)
    assert (last.type, last.process_id, last.detail) == ("worker.blocked", "w1", "an agent blocks it")
    await following.aclose()


async def test_followers_miss_nothing_of_a_burst(store: Store) -> None:
    following = store.events.follow(["p"], interval=0.001)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.02)
    await asyncio.gather(*(store.events.add("p", EventName.POOL_SCALED, detail=str(i)) for i in range(1200)))
    seen = [(await first).detail] + [(await anext(following)).detail for _ in range(1199)]
    assert sorted(map(int, seen)) == list(range(1200))
    await following.aclose()


# -- lists ------------------------------------------------------------------------------------------------------


async def test_agents_are_listed_over_pages(store: Store) -> None:
    await seed_pool(store, max_pending=10_000)
    await seed_worker(store, capacity=1100)
    await asyncio.gather(*(seed_agent(store, f"a{i:04}") for i in range(1203)))
    agents = await store.agents.all("p")
    assert [agent.agent_id for agent in agents] == [f"p/a{i:04}" for i in range(1203)]
    assert len([agent for agent in agents if agent.process_id]) == 1100
    assert [agent.agent_id for agent in await store.agents.several(["p/a0001", "p/none"])] == ["p/a0001"]


async def test_agents_on_a_worker_that_is_being_reaped_are_listed(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=5)
    for i in range(5):
        await seed_running_agent(store, f"a{i}")
    await store.connection.call("reap_worker", "p", "w1", "owner", MASTER, 0, "x", 2, 5, 500)
    assert len(await store.agents.all("p")) == 5
    assert [worker.process_id for worker in await store.workers.all("p")] == ["w1"]


async def test_workers_are_listed_once_and_in_order(store: Store) -> None:
    await seed_pool(store)
    for worker in ("w3", "w1", "w2"):
        await seed_worker(store, worker)
        await asyncio.sleep(0.002)
    # A worker that is fenced between the two reads is found in both.
    await store.connection.redis.zadd(store.keys.lost("p"), {"w1": 1})
    assert [worker.process_id for worker in await store.workers.all("p")] == ["w3", "w1", "w2"]


async def test_silent_workers_are_told_with_their_status(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_order(store, "w2")
    now = (await store.pools.observe("p")).now_ms
    assert await store.workers.silent("p", now - 10_000) == []
    silent = await store.workers.silent("p", now + 10_000)
    assert sorted((worker.process_id, str(worker.status)) for worker in silent) == [("w1", "ready"), ("w2", "ordered")]


async def test_what_is_not_there_is_unknown(store: Store) -> None:
    with pytest.raises(UnknownAgent):
        await store.agents.get("p/none")
    with pytest.raises(UnknownWorker):
        await store.workers.pool_of("none")
    await seed_pool(store)
    await seed_worker(store)
    assert await store.workers.pool_of("w1") == "p"
    assert await store.agents.ended("p/none") == ("terminated", "")
    assert await store.agents.snapshot("p", "none") == ""


async def test_installation_has_one_id(store: Store) -> None:
    ids = await asyncio.gather(*(store.pools.install_id() for _ in range(20)))
    assert len(set(ids)) == 1
    assert len(ids[0]) == 22
