"""Tasks that wait for tasks of their own: they lend their slots, and never more than that."""

import pytest
from support.seeds import (
    MASTER,
    ended,
    exchange,
    finish,
    ids,
    listening,
    read_commands,
    read_free,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.commands import Wake
from agentpool.store import Store


async def waits(store: Store, worker: str = "w1", tenant: str = "default") -> tuple[set[str], set[str]]:
    redis, keys = store.connection.redis, store.keys
    return await redis.smembers(keys.worker_waits("p", worker)), await redis.smembers(keys.tenant_waits("p", tenant))


async def seed_child(store: Store, id: str = "c1", parent: str = "p/t1", **more: str) -> str:
    return await seed_task(store, id, lane="child", parent=parent, **more)


async def test_who_waits_lends_its_slot_to_such_tasks_only(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    await seed_lease(store)
    await seed_task(store, "t2")
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await seed_child(store)
        await seed_child(store, "c2")
        assert Wake(process_id="w1") in await read_commands(heard)
    assert await waits(store) == ({"p/t1"}, {"p/t1"})
    assert ids(await exchange(store, room=0)) == ["p/c1"], "one slot was lent, to one task"
    assert ids(await exchange(store, room=0, ended=[ended("p/c1")])) == ["p/c2"]
    assert await waits(store) == ({"p/t1"}, {"p/t1"}), "until all have ended"
    await finish(store, "p/c2")
    assert await waits(store) == (set(), set())
    assert ids(await exchange(store, room=0)) == []
    assert await read_free(store) == {"w1": 0}
    assert ids(await exchange(store, room=1, ended=[ended()])) == ["p/t2"]


async def test_three_levels_on_one_slot(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    await seed_lease(store)
    for n in range(1, 4):
        await seed_child(store, f"c{n}", f"p/c{n - 1}" if n > 1 else "p/t1")
        assert ids(await exchange(store, room=0)) == [f"p/c{n}"]
    for n in (3, 2, 1):
        await finish(store, f"p/c{n}")
    await finish(store)
    assert await read_free(store) == {"w1": 1}
    assert await waits(store) == (set(), set())


async def test_tasks_of_waiting_tasks_run_on_free_slots_first(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=1)
    await seed_worker(store, "w2", capacity=2)
    await seed_lease(store)
    await seed_task(store, "t2")
    await seed_child(store)
    assert ids(await exchange(store, "w2", room=2)) == ["p/c1", "p/t2"], "they go before all others"


async def test_who_waits_is_not_running_for_its_tenants_limit(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"running": 1})
    await seed_lease(store)
    await seed_child(store)
    assert ids(await exchange(store, room=5)) == ["p/c1"]
    assert (await store.tenants.usage("p", "default")).running == 1


async def test_who_is_held_by_its_limit_goes_on_when_it_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"running": 1})
    await seed_lease(store)
    await seed_task(store, "t2")
    assert ids(await exchange(store, room=5)) == []
    assert (await store.tenants.usage("p", "default")).held
    await seed_child(store)
    assert ids(await exchange(store, room=5)) == ["p/c1"]


@pytest.mark.parametrize("end", ["done", "dead", "cancel", "retry"])
async def test_a_wait_ends_however_its_task_does(store: Store, end: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await seed_child(store)
    if end == "cancel":
        await store.tasks.cancel("p/c1")
    else:
        await exchange(store, room=5)
        await finish(store, "p/c1", verdict=end)
    assert await waits(store) == (({"p/t1"}, {"p/t1"}) if end == "retry" else (set(), set()))


@pytest.mark.parametrize("end", ["done", "retry", "crash", "terminate"])
async def test_who_ends_waits_no_more(store: Store, end: str) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    agent = "a1" if end == "terminate" else ""
    if agent:
        await seed_running_agent(store)
    await seed_lease(store, agent=agent)
    await seed_child(store)
    if end == "crash":
        await store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="x")
    elif agent:
        await store.agents.terminate("p/a1")
    else:
        await finish(store, verdict=end)
    assert await waits(store) == (set(), set())
    assert await store.connection.redis.exists(store.keys.children("p", "p/t1")) == 0
    await seed_worker(store, "w2")
    assert "p/c1" in ids(await exchange(store, "w2", room=5)), "what it asked for is done all the same"
    await finish(store, "p/c1", worker="w2")


async def test_a_second_attempt_does_not_wait_for_tasks_of_the_first(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await seed_child(store)
    await exchange(store, room=1)
    await exchange(store, room=1, ended=[ended(verdict="retry")])
    await seed_child(store, "c2")
    await exchange(store, room=1)
    await finish(store, "p/c2")
    assert await waits(store) == (set(), set())
    await seed_child(store, "c3")
    await finish(store, "p/c1")
    assert await waits(store) == ({"p/t1"}, {"p/t1"})


async def test_a_task_for_another_tenant_waits_in_the_name_of_its_own(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store, tenant="acme")
    await seed_child(store, tenant="other")
    assert await waits(store, tenant="acme") == ({"p/t1"}, {"p/t1"})
    assert await waits(store, tenant="other") == ({"p/t1"}, set())
    await finish(store)
    assert await waits(store, tenant="acme") == (set(), set())


async def test_a_parent_that_is_not_running_lends_nothing(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    await seed_task(store)
    await seed_child(store)
    await seed_child(store, "c2", "p/unknown")
    assert await waits(store) == (set(), set())
    assert ids(await exchange(store, room=1)) == ["p/c1"]


async def test_a_repeated_submission_does_not_wait_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await seed_child(store)
    await exchange(store, room=5)
    await finish(store, "p/c1")
    await seed_child(store)
    assert await waits(store) == (set(), set())
