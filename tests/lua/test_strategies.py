"""Where agents and tasks go: strategies of placement, labels, favourite and warm workers."""

import pytest
from support.seeds import (
    MASTER,
    listening,
    read_commands,
    seed_agent,
    seed_host,
    seed_pool,
    seed_task,
    seed_worker,
)

from agentpool.errors import Unplaceable
from agentpool.protocol.commands import Command, Wake
from agentpool.protocol.records import TypeInfo
from agentpool.store import Store


async def _place(store: Store, names: str, **more: str) -> list[str | None]:
    return [await seed_agent(store, name, **more) for name in names.split()]


async def test_round_robin_gives_each_worker_its_turn(store: Store) -> None:
    await seed_pool(store, placement="round_robin")
    for worker, capacity in (("w1", 10), ("w2", 2), ("w3", 5)):
        await seed_worker(store, worker, capacity=capacity)
    first = await _place(store, "a b c")
    assert sorted(map(str, first)) == ["w1", "w2", "w3"]
    assert await _place(store, "d e f") == first
    assert set(await _place(store, "g h")) == {"w1", "w3"}, "w2 is full"


@pytest.mark.parametrize("placement", ["tenant_affinity", "project_affinity"])
async def test_agents_of_a_tenant_stay_together_while_their_worker_is_there(store: Store, placement: str) -> None:
    await seed_pool(store, placement=placement)
    for worker in ("w1", "w2", "w3"):
        await seed_worker(store, worker)
    homes = {tenant: await _place(store, f"{tenant}1 {tenant}2 {tenant}3", tenant=tenant) for tenant in ("t", "u")}
    assert [len(set(home)) for home in homes.values()] == [1, 1]
    assert homes["t"][0] != homes["u"][0], "the second went where there was most room"
    home = str(homes["t"][0])
    await store.workers.reap("p", home, proof="owner", authority=MASTER, reason="killed")
    later = await _place(store, "t4 t5", tenant="t")
    assert home not in later
    assert len(set(later)) == 1, "the new home counts from now on"


async def test_an_agent_goes_only_where_its_labels_are(store: Store) -> None:
    token = await seed_pool(store)
    await store.pools.apply("p", token, [TypeInfo(name="R", module="tests", labels=("gpu", "ssd"))], {})
    with pytest.raises(Unplaceable, match="gpu"):
        await seed_agent(store, "a1")
    await seed_host(store, "h1", ["gpu", "ssd", "other"])
    await seed_worker(store, "plain")
    await seed_worker(store, "half", labels="gpu")
    assert await seed_agent(store, "a1") is None, "a worker with its labels may come"
    await seed_worker(store, "right", labels="gpu other ssd")
    assert (await store.agents.get("p/a1")).process_id == "right"
    assert await seed_agent(store, "a2") == "right"
    await store.hosts.forget("p", "h1")
    with pytest.raises(Unplaceable):
        await seed_task(store)


async def _woken(store: Store, *workers: str, **task: str) -> list[str]:
    """Submit a task; return which workers were told of it."""
    async with listening(store, store.keys.pool_channel("p")) as heard:
        await seed_task(store, **task)
        commands: list[Command] = await read_commands(heard)
    assert set(workers) >= {command.process_id for command in commands}
    return [command.process_id for command in commands if isinstance(command, Wake)]


async def test_a_worker_with_a_warm_agent_is_woken_first(store: Store) -> None:
    await seed_pool(store)
    for worker, capacity in (("w1", 10), ("w2", 4), ("w3", 2)):
        await seed_worker(store, worker, capacity=capacity)
    assert await _woken(store, "w1", id="t1") == ["w1"], "the one with the most room"
    await store.connection.call("beat_worker", "p", "w3", 0, "", 0, "Other/default R/acme", 0, 0)
    assert await _woken(store, "w3", id="t2", tenant="acme") == ["w3"]
    assert await _woken(store, "w1", id="t3", tenant="other") == ["w1"]


async def test_a_sticky_task_goes_to_the_worker_of_its_tenant_until_that_is_gone(store: Store) -> None:
    await seed_pool(store)
    for worker in ("w1", "w2"):
        await seed_worker(store, worker)
    (home,) = await _woken(store, "w1", "w2", id="t1", tenant="acme", sticky="acme")
    await seed_agent(store, "filler")  # now the other may have more room
    for number in range(3):
        assert await _woken(store, "w1", "w2", id=f"s{number}", tenant="acme", sticky="acme") == [home]
    await store.workers.reap("p", home, proof="owner", authority=MASTER, reason="killed")
    other = {"w1": "w2", "w2": "w1"}[home]
    assert await _woken(store, other, id="t9", tenant="acme", sticky="acme") == [other]
    assert await store.connection.redis.hget(store.keys.affinity("p"), "acme") == other
