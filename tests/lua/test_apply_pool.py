"""apply_pool, update_pool, scale_pool, observe_pool: settings, decisions, numbers."""

import pytest
from support.seeds import (
    SETTINGS,
    exchange,
    finish,
    listening,
    read_events,
    read_hash,
    read_texts,
    seed_agent,
    seed_leader,
    seed_order,
    seed_pool,
    seed_task,
    seed_worker,
)
from support.wait import wait_until

from agentpool.errors import ConfigError, InvalidInput, UnknownPool
from agentpool.protocol.records import TypeInfo
from agentpool.store import Store
from agentpool.version import SCHEMA_OLDEST, SCHEMA_VERSION

R = TypeInfo(name="R", module="tests", labels=("gpu",), start_timeout=1.5)


async def lapsed(store: Store) -> str:
    """Return the token of a leader whose lease is over and whom another followed."""
    old = await seed_leader(store, lease_ms=1)

    async def follow() -> str:
        lead = await store.locks.lead("p", "m2", lease_ms=60_000, gap_ms=60_000, hold_ms=0)
        return lead.token

    await wait_until(follow)
    return old


# -- apply_pool -------------------------------------------------------------------------------------------------


async def test_settings_and_types_are_written(store: Store) -> None:
    token = await seed_leader(store)
    assert await store.pools.apply("p", token, [R, TypeInfo(name="Q", module="x")], SETTINGS | {"min_workers": 2})
    info = await store.pools.info("p")
    assert (info.pool_name, info.status, info.schema) == ("p", "active", SCHEMA_VERSION)
    assert (info.min_workers, info.floor, info.desired) == (2, 0, 2), "nobody scaled, and the size is within the bounds"
    assert [type.name for type in await store.pools.types("p")] == ["Q", "R"]
    assert (await store.pools.types("p"))[1] == R
    assert await store.pools.names() == ["p"]
    assert await read_events(store) == ["leader.elected", "pool.applied"]


async def test_applying_again_replaces_types_and_keeps_decisions(store: Store) -> None:
    token = await seed_pool(store, types=["R", "Old"], max_workers=9)
    await store.pools.scale("p", 7)
    assert await store.pools.apply("p", token, [R], SETTINGS | {"max_workers": 9})
    info = await store.pools.info("p")
    assert (info.floor, info.desired) == (7, 7)
    assert [type.name for type in await store.pools.types("p")] == ["R"]
    assert await store.pools.apply("p", token, [R], SETTINGS | {"max_workers": 5})
    info = await store.pools.info("p")
    assert (info.floor, info.desired) == (5, 5)


async def test_a_pool_without_types_can_be_applied(store: Store) -> None:
    await seed_pool(store, types=["R"])
    await seed_pool(store, types=[])
    assert await store.pools.types("p") == []


async def test_apply_is_refused_to_a_past_leader(store: Store) -> None:
    await seed_pool(store, max_workers=4)
    before = await read_hash(store, store.keys.types("p"))
    old = await lapsed(store)
    assert not await store.pools.apply("p", old, [TypeInfo(name="New", module="x")], SETTINGS | {"max_workers": 5})
    assert not await store.pools.apply("p", "", [], SETTINGS)
    assert (await store.pools.info("p")).max_workers == 4
    assert await read_hash(store, store.keys.types("p")) == before


async def test_apply_is_refused_when_a_newer_release_wrote(store: Store) -> None:
    token = await seed_pool(store)
    newer = {"schema_min": SCHEMA_VERSION + 1, "release": "99.0"}
    await store.connection.redis.hset(store.keys.pool("p"), mapping=newer)
    with pytest.raises(ConfigError, match=r"too old. Install release 99\.0 or a later one"):
        await store.pools.apply("p", token, [], SETTINGS | {"max_workers": 1})
    assert (await store.pools.info("p")).max_workers == 100
    assert len(await store.pools.types("p")) == 1


async def test_a_release_beside_a_newer_one_does_not_take_back_what_that_wrote(store: Store) -> None:
    token = await seed_pool(store)
    await store.connection.redis.hset(store.keys.pool("p"), mapping={"schema": SCHEMA_VERSION + 1})
    assert await store.pools.apply("p", token, [R], SETTINGS)
    info = await store.pools.info("p")
    assert (info.schema, info.schema_min) == (SCHEMA_VERSION + 1, SCHEMA_OLDEST)


# -- update_pool ------------------------------------------------------------------------------------------------


async def test_decisions_are_recorded_and_noted(store: Store) -> None:
    token = await seed_pool(store)
    assert await store.pools.update("p", token, "desired", 3)
    assert await store.pools.update("p", token, "restarts", "boot failed", "pool.restarts_stopped")
    info = await store.pools.info("p")
    assert (info.desired, info.restarts) == (3, "boot failed")
    events = await store.events.read("p")
    assert (events[-1].type, events[-1].detail) == ("pool.restarts_stopped", "boot failed")


async def test_update_is_refused_to_a_past_leader(store: Store) -> None:
    await seed_pool(store)
    old = await lapsed(store)
    assert not await store.pools.update("p", old, "desired", 3)
    assert (await store.pools.info("p")).desired == 0


async def test_removed_pool_takes_nothing_until_it_is_applied_again(store: Store) -> None:
    token = await seed_pool(store)
    await store.pools.remove("p", token)
    assert await store.pools.names() == []
    for verb in (seed_agent, seed_task):
        with pytest.raises(UnknownPool):
            await verb(store)
    with pytest.raises(UnknownPool):
        await store.pools.scale("p", 1)
    await seed_pool(store)
    assert await store.pools.names() == ["p"]
    assert await seed_agent(store) is None


async def test_past_leader_cannot_remove(store: Store) -> None:
    await seed_pool(store)
    await store.pools.remove("p", await lapsed(store))
    assert await store.pools.names() == ["p"]
    assert (await store.pools.info("p")).status == "active"


# -- scale_pool -------------------------------------------------------------------------------------------------


async def test_scale_sets_floor_and_size_and_lets_restarts_go_on(store: Store) -> None:
    token = await seed_pool(store, min_workers=1, max_workers=5)
    await store.pools.update("p", token, "restarts", "boot failed")
    async with listening(store, store.keys.leader_channel("p")) as heard:
        await store.pools.scale("p", 4)
        await store.pools.scale("p", 4)
        assert await read_texts(heard) == ["scaled", "scaled"]
    info = await store.pools.info("p")
    assert (info.floor, info.desired, info.restarts) == (4, 4, "")


@pytest.mark.parametrize("workers", [0, 6, -1])
async def test_scale_outside_the_bounds_is_refused(store: Store, workers: int) -> None:
    await seed_pool(store, min_workers=1, max_workers=5)
    with pytest.raises(InvalidInput, match="1 to 5"):
        await store.pools.scale("p", workers)
    assert (await store.pools.info("p")).floor == 0


async def test_scale_of_an_unknown_pool_is_refused(store: Store) -> None:
    with pytest.raises(UnknownPool):
        await store.pools.scale("p", 1)
    await seed_leader(store)
    with pytest.raises(UnknownPool):
        await store.pools.scale("p", 1)
    with pytest.raises(UnknownPool):
        await store.pools.info("p")
    with pytest.raises(UnknownPool):
        await store.pools.stats("p", [])


# -- observe_pool -----------------------------------------------------------------------------------------------


async def test_everything_is_counted(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=3)
    await seed_worker(store, "w2", capacity=2)
    await seed_order(store, "w3")
    await store.workers.drain("p", "w2", reason="test")
    for name in ("a1", "a2"):
        await seed_agent(store, name)
    for id in ("t1", "t2", "t3"):
        await seed_task(store, id)
    claim = await exchange(store, room=5)
    assert [task.id for task in claim.tasks] == ["p/t1"]
    await seed_agent(store, "a3")
    view = await store.pools.observe("p")
    assert (view.workers, view.starting, view.draining, view.ready) == (3, 1, 1, 1)
    assert (view.pending, view.due, view.waiting_tasks, view.running_tasks) == (1, 1, 2, 1)
    assert (view.free_slots, view.lost) == (0, 0)
    await finish(store)
    view = await store.pools.observe("p")
    assert (view.pending, view.running_tasks, view.free_slots) == (0, 0, 0), "the agent that waited has the slot"


async def test_an_empty_pool_is_all_zeros(store: Store) -> None:
    view = await store.pools.observe("nothing")
    assert view.now_ms > 0
    assert not any(getattr(view, field) for field in view.__struct_fields__ if field != "now_ms")


async def test_numbers_of_the_contract(store: Store) -> None:
    """`min_workers = 1`, `agents_per_worker = 10`, 15 spawns."""
    await seed_pool(store, min_workers=1)
    await seed_worker(store, "w1")
    for i in range(10):
        assert await seed_agent(store, f"a{i}") == "w1"
    for i in range(10, 15):
        assert await seed_agent(store, f"a{i}") is None, "waits for the second worker"
    waiting = await store.pools.stats("p", await store.workers.all("p"))
    assert (waiting.process_count, waiting.agent_count, waiting.pending_agents) == (1, 15, 5)
    await seed_worker(store, "w2")
    workers = await store.workers.all("p")
    stats = await store.pools.stats("p", workers)
    assert (
        stats.process_count,
        stats.active_worker_processes,
        stats.total_capacity,
        stats.used_capacity,
        stats.available_capacity,
        stats.agent_count,
        stats.utilization,
    ) == (2, 2, 20, 15, 5, 15, 0.75)
    assert [worker.agent_count for worker in workers] == [10, 5]
    assert len(await store.agents.all("p")) == 15
