"""beat_worker, beat_agents, read_worker: what a worker tells, and what it is told."""

from collections.abc import Iterator

import pytest
from support.seeds import (
    MASTER,
    exchange,
    finish,
    incarnation,
    read_agent,
    read_worker,
    seed_agent,
    seed_order,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.records import Beat
from agentpool.protocol.states import AgentStatus, WorkerStatus
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.workers import beat_worker


@pytest.fixture
def thread(redis_url: str) -> Iterator[SyncConnection]:
    connection = SyncConnection(redis_url)
    yield connection
    connection.close()
    connection.close()


def beat(thread: SyncConnection, worker: str = "w1", memory: int | None = None) -> Beat | None:
    return beat_worker(thread, "p", worker, loop_lag_ms=3, memory_bytes=memory, cpu_percent=12.34)


async def last_beat(store: Store, worker: str = "w1") -> float:
    score: float = await store.connection.redis.zscore(store.keys.workers("p"), worker)
    return score


async def test_beat_is_recorded_and_answered(store: Store, thread: SyncConnection) -> None:
    await seed_pool(store)
    await seed_worker(store)
    before = await last_beat(store)
    assert beat(thread, memory=5) == Beat(version=0, status=WorkerStatus.READY, turns=0, next_due_ms=-1)
    assert await last_beat(store) >= before
    worker = (await store.workers.all("p"))[0]
    assert (worker.loop_lag_ms, worker.memory_bytes, worker.cpu_percent) == (3, 5, 12.3)
    assert worker.last_beat == await last_beat(store)


async def test_memory_that_was_not_measured_keeps_its_value(store: Store, thread: SyncConnection) -> None:
    await seed_pool(store)
    await seed_worker(store)
    beat(thread, memory=5)
    beat(thread)
    assert (await read_worker(store))["memory_bytes"] == "5"


async def test_beat_tells_versions_lanes_and_a_drain(store: Store, thread: SyncConnection) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    await seed_agent(store)
    assert beat(thread) == Beat(version=1, status=WorkerStatus.READY, turns=0, next_due_ms=-1)
    await seed_task(store)
    assert beat(thread) == Beat(version=1, status=WorkerStatus.READY, turns=1, next_due_ms=-1)
    await store.workers.drain("p", "w1", reason="test")
    assert beat(thread) == Beat(version=2, status=WorkerStatus.DRAINING, turns=1, next_due_ms=-1)


async def test_a_worker_that_was_given_up_is_told(store: Store, thread: SyncConnection) -> None:
    await seed_pool(store)
    assert beat(thread) is None
    await seed_worker(store)
    await store.connection.redis.hset(store.keys.process("w1"), "status", "lost")
    assert beat(thread) is None
    await store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="test")
    assert beat(thread) is None
    assert await read_worker(store) == {}, "a late beat brings nothing back"
    assert await store.connection.redis.zcard(store.keys.workers("p")) == 0


# -- beat_agents ------------------------------------------------------------------------------------------------


async def test_heartbeats_of_agents_are_recorded(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, "a1")
    await seed_running_agent(store, "a2")
    for _ in range(2):
        await store.agents.beat("p", "w1", ["a1", "unknown"])
    assert int((await read_agent(store, "a1"))["last_heartbeat"]) > 0
    assert "last_heartbeat" not in await read_agent(store, "a2")
    assert await read_agent(store, "unknown") == {}


async def test_heartbeat_of_another_workers_agent_is_passed_over(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await store.agents.beat("p", "w2", ["a1"])
    assert "last_heartbeat" not in await read_agent(store)
    await store.agents.beat("p", "w1", [])


# -- read_worker ------------------------------------------------------------------------------------------------


async def test_a_worker_reads_all_that_it_shall_hold(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, "a1", tenant="acme")
    await seed_agent(store, "a2")
    await seed_task(store, "t1", agent="a1", tenant="acme")
    await exchange(store, names=["a1"])
    await store.tasks.cancel("p/t1")
    for id in ("t2", "t3"):
        await seed_task(store, id, agent="a1", tenant="acme")
    view = await store.workers.view("p", "w1")
    assert view
    assert (view.status, view.cancels) == (WorkerStatus.READY, ("p/t1",))
    assert view.version == int((await read_worker(store))["version"])
    first, second = sorted(view.agents, key=lambda agent: agent.agent_id)
    assert (first.agent_id, first.agent_type, first.tenant) == ("p/a1", "R", "acme")
    assert first.incarnation == await incarnation(store)
    assert (first.status, first.waiting) == (AgentStatus.ACTIVE, 2)
    assert (second.status, second.waiting) == (AgentStatus.PLACED, 0)
    assert await store.workers.view("p", "w1") == view, "reads only"
    await finish(store, "p/t1", "a1")
    after = await store.workers.view("p", "w1")
    assert after
    assert after.cancels == ()


async def test_a_worker_that_was_given_up_reads_nothing(store: Store) -> None:
    await seed_pool(store)
    assert await store.workers.view("p", "w1") is None
    await seed_order(store, "w1")
    assert (await store.workers.view("p", "w1")) is not None
    await store.connection.redis.hset(store.keys.process("w1"), "status", "lost")
    assert await store.workers.view("p", "w1") is None
