"""reserve_workers, start_worker, register_worker: an order, a process, a place in the index."""

import pytest
from support.seeds import (
    MASTER,
    at_once,
    listening,
    read_commands,
    read_events,
    read_free,
    read_hash,
    read_worker,
    seed_agent,
    seed_leader,
    seed_order,
    seed_pool,
    seed_worker,
)
from support.wait import wait_until

from agentpool.protocol.commands import Spawn
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.workers import register_worker


async def reserve(
    store: Store,
    orders: list[str],
    leader: str,
    placement: str | None,
    *,
    max_starting: int = 1000,
) -> list[str] | None:
    return await store.workers.reserve(
        "p",
        [(worker, f"secret of {worker}") for worker in orders],
        leader=leader,
        placement=placement or "",
        master=MASTER,
        max_starting=max_starting,
    )


async def register(store: Store, worker: str, secret: str | None = None, capacity: int = 10) -> list[str]:
    secret = f"secret of {worker}" if secret is None else secret
    answer: list[str] = await store.connection.call("register_worker", "p", worker, secret, capacity, "pid", 7)
    return answer


# -- reserve_workers --------------------------------------------------------------------------------------------


async def test_orders_name_their_master_before_anything_is_forked(store: Store) -> None:
    leader = await seed_pool(store)
    async with store.locks.placement("p", MASTER) as placement:
        assert await reserve(store, ["w1", "w2"], leader, placement) == ["w1", "w2"]
    order = await read_worker(store, "w1")
    assert (order["status"], order["master"], order["secret"]) == ("ordered", MASTER, "secret of w1")
    assert await read_free(store) == {}, "it takes no agents yet"
    view = await store.pools.observe("p")
    assert (view.workers, view.starting) == (2, 2)
    assert (await read_events(store))[-2:] == ["worker.ordered", "worker.ordered"]


async def test_orders_stop_at_max_workers(store: Store) -> None:
    leader = await seed_pool(store, max_workers=3)
    async with store.locks.placement("p", MASTER) as placement:
        assert await reserve(store, ["w1", "w2"], leader, placement) == ["w1", "w2"]
        assert await reserve(store, ["w3", "w4"], leader, placement) == ["w3"]
        assert await reserve(store, ["w5"], leader, placement) == []


async def test_while_a_worker_drains_one_more_may_be_ordered(store: Store) -> None:
    leader = await seed_pool(store, max_workers=2)
    for worker in ("w1", "w2"):
        await seed_worker(store, worker)
        await store.workers.drain("p", worker, reason="test")
    async with store.locks.placement("p", MASTER) as placement:
        assert await reserve(store, ["w3", "w4"], leader, placement) == ["w3"]
        assert await store.workers.retire("p", "w1", reason="test")
        assert await reserve(store, ["w4", "w5"], leader, placement) == ["w4"]


async def test_orders_stop_at_max_starting(store: Store) -> None:
    leader = await seed_pool(store)
    async with store.locks.placement("p", MASTER) as placement:
        assert await reserve(store, ["w1", "w2", "w3"], leader, placement, max_starting=2) == ["w1", "w2"]
        await register(store, "w1")
        assert await reserve(store, ["w3", "w4"], leader, placement, max_starting=2) == ["w3"]


async def test_draining_workers_make_room_for_their_replacements(store: Store) -> None:
    leader = await seed_pool(store, max_workers=1)
    await seed_worker(store, "w1")
    async with store.locks.placement("p", MASTER) as placement:
        assert await reserve(store, ["w2"], leader, placement) == []
        await store.workers.drain("p", "w1", reason="test")
        assert await reserve(store, ["w2", "w3"], leader, placement) == ["w2"]


async def test_orders_repeat(store: Store) -> None:
    leader = await seed_pool(store, max_workers=2)
    async with store.locks.placement("p", MASTER) as placement:
        await reserve(store, ["w1", "w2"], leader, placement)
        before = await read_worker(store, "w1")
        assert await reserve(store, ["w1", "w2"], leader, placement) == ["w1", "w2"]
        assert await read_worker(store, "w1") == before
    assert (await store.pools.observe("p")).workers == 2
    assert (await read_events(store)).count("worker.ordered") == 2


async def test_orders_are_refused_to_past_holders(store: Store) -> None:
    leader = await seed_pool(store)
    placement = await store.locks.take("p", "placement", MASTER, lease_ms=60_000)
    assert await reserve(store, ["w1"], leader, "") is None
    assert await reserve(store, ["w1"], "", placement) is None
    assert placement
    await store.locks.release("p", "placement", placement)
    assert await reserve(store, ["w1"], leader, placement) is None, "given back"
    placement = await store.locks.take("p", "placement", "m2", lease_ms=60_000)
    old = await seed_leader(store, lease_ms=1)
    await wait_until(lambda: seed_other_leader(store))
    assert await reserve(store, ["w1"], old, placement) is None, "another leads"
    assert (await store.pools.observe("p")).workers == 0


async def seed_other_leader(store: Store) -> str:
    return (await store.locks.lead("p", "m2", lease_ms=60_000, gap_ms=60_000, hold_ms=0)).token


async def test_fifty_orders_at_once_stay_within_max_workers(store: Store) -> None:
    leader = await seed_pool(store, max_workers=7)
    async with store.locks.placement("p", MASTER) as placement:
        answers = await at_once(50, lambda i: reserve(store, [f"v{i}", f"w{i}"], leader, placement))
    assert sum(len(ordered) for ordered in answers) == 7
    assert (await store.pools.observe("p")).workers == 7


async def test_fifty_repeats_of_one_order_are_one_order(store: Store) -> None:
    leader = await seed_pool(store)
    async with store.locks.placement("p", MASTER) as placement:
        answers = await at_once(50, lambda _: reserve(store, ["w1"], leader, placement))
    assert answers == [["w1"]] * 50
    assert (await read_events(store)).count("worker.ordered") == 1


# -- start_worker -----------------------------------------------------------------------------------------------


async def test_fork_is_written_down(store: Store) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    assert await store.workers.start("p", "w1", "secret of w1", {"pid": 42, "host_id": "h"})
    assert await store.workers.start("p", "w1", "secret of w1", {"pid": 42, "host_id": "h"})
    worker = await read_worker(store)
    assert (worker["status"], worker["pid"]) == ("starting", "42")
    assert (await read_events(store)).count("worker.starting") == 1


async def test_fork_without_an_order_is_refused(store: Store) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    assert not await store.workers.start("p", "w1", "wrong", {"pid": 42})
    assert not await store.workers.start("p", "w2", "secret of w2", {"pid": 42})
    assert (await read_worker(store))["status"] == "ordered"
    assert await read_worker(store, "w2") == {}


async def test_fork_that_is_written_down_late_leaves_a_ready_worker_ready(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert await store.workers.start("p", "w1", "secret of w1", {"start_time": 42})
    worker = await read_worker(store)
    assert (worker["status"], worker["start_time"]) == ("ready", "42")


# -- register_worker --------------------------------------------------------------------------------------------


async def test_registered_worker_takes_the_agents_that_wait(store: Store) -> None:
    await seed_pool(store)
    for i in range(5):
        assert await seed_agent(store, f"a{i}") is None
    await seed_order(store, "w1")
    async with listening(store, store.keys.worker_channel("w1"), store.keys.pool_channel("p")) as heard:
        assert await register(store, "w1", capacity=3) == ["ok", "3"]
        commands = await read_commands(heard)
    spawned = [command.agent_id for command in commands if isinstance(command, Spawn)]
    assert sorted(spawned) == sorted(["p/a0", "p/a1", "p/a2"] * 2), "longest first, each on both channels"
    worker = await read_worker(store)
    assert (worker["status"], worker["agent_count"], worker["available"]) == ("ready", "3", "0")
    assert await read_free(store) == {"w1": 0}
    assert (await store.pools.observe("p")).starting == 0


async def test_registering_repeats_and_keeps_a_drain(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert await register(store, "w1", capacity=99) == ["ok", "0"]
    assert await read_free(store) == {"w1": 10}
    assert (await read_events(store)).count("worker.ready") == 1
    await store.workers.drain("p", "w1", reason="test")
    assert (await register(store, "w1"))[0] == "ok"
    assert (await read_worker(store))["status"] == "draining"
    assert await read_free(store) == {}


async def test_registering_without_an_order_is_refused(store: Store) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    assert await register(store, "w1", "wrong") == ["gone"]
    assert await register(store, "w2") == ["gone"]
    assert await store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="test") == "done"
    assert await register(store, "w1") == ["gone"]
    assert await read_free(store) == {}
    assert await read_hash(store, store.keys.process("w1")) == {}


async def test_fifty_registrations_of_one_worker_are_one(store: Store) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    await seed_agent(store)
    answers = await at_once(50, lambda _: register(store, "w1", capacity=2))
    assert answers == [["ok", "1"]] * 50
    assert await read_free(store) == {"w1": 1}


async def test_a_worker_registers_from_a_thread_without_a_loop(store: Store, redis_url: str) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    connection = SyncConnection(redis_url)
    try:
        assert register_worker(connection, "p", "w1", "secret of w1", 4, {"pid": 1, "host": "h"}) == 0
        assert register_worker(connection, "p", "w1", "wrong", 4, {}) is None
    finally:
        connection.close()
    (worker,) = await store.workers.all("p")
    assert (worker.capacity, worker.host, worker.available) == (4, "h", 4)


@pytest.mark.parametrize("capacity", [0, 1, 1000])
async def test_any_capacity_can_be_registered(store: Store, capacity: int) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=capacity)
    assert await read_free(store) == {"w1": capacity}
