"""place_agent, place_pending: where an agent goes, and what waits."""

from collections import Counter

import pytest
from support.seeds import (
    LONG_MS,
    MASTER,
    at_once,
    incarnation,
    listening,
    read_agent,
    read_commands,
    read_events,
    read_free,
    read_hash,
    read_texts,
    read_worker,
    seed_agent,
    seed_leader,
    seed_pool,
    seed_worker,
)
from support.wait import wait_until

from agentpool.errors import AgentTerminated, DuplicateAgent, QueueFull, UnknownAgentType, UnknownPool
from agentpool.protocol.commands import Spawn
from agentpool.protocol.states import AgentStatus
from agentpool.store import Store

# -- place_agent ------------------------------------------------------------------------------------------------


async def test_placed_agent_has_record_slot_and_command(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    async with listening(store, store.keys.worker_channel("w1"), store.keys.pool_channel("p")) as heard:
        worker = await store.agents.place(
            "p",
            "a1",
            "R",
            tenant="acme",
            project="x y",
            max_idle_ms=2**40,
            heartbeat_ms=5,
            reply_to="client:c:replies",
            operation="o1",
        )
        commands = await read_commands(heard)
    assert worker == "w1"
    spawn = Spawn(
        process_id="w1",
        version=1,
        agent_id="p/a1",
        agent_type="R",
        incarnation=await incarnation(store),
        tenant="acme",
        project="x y",
        max_idle_ms=2**40,
        heartbeat_ms=5,
    )
    assert commands == [spawn, spawn]
    record = await store.agents.get("p/a1")
    assert (record.status, record.process_id) == (AgentStatus.PLACED, "w1")
    assert (record.pool_name, record.tenant, record.max_idle_ms) == ("p", "acme", 2**40)
    assert await read_free(store) == {"w1": 9}
    assert (await read_worker(store))["agent_count"] == "1"
    assert await store.connection.redis.smembers(store.keys.tenant_agents("p", "acme")) == {"a1"}
    assert (await read_events(store))[-2:] == ["agent.spawned", "agent.placed"]


async def test_commands_are_readable(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    async with listening(store, store.keys.pool_channel("p")) as heard:
        await seed_agent(store)
        (text,) = await read_texts(heard)
    assert '"agent_id":"p/a1"' in text
    assert '"type":"spawn"' in text


async def test_agent_without_room_waits_and_room_is_asked_for(store: Store) -> None:
    await seed_pool(store)
    async with listening(store, store.keys.leader_channel("p")) as heard:
        assert await seed_agent(store) is None
        assert await read_texts(heard) == ["room wanted"]
    agent = await read_agent(store)
    assert (agent["status"], agent["process_id"], agent["incarnation"]) == ("pending", "", "0")
    assert await store.connection.redis.zscore(store.keys.pending("p"), "a1") == int(agent["spawned_at"])
    assert (await read_events(store))[-2:] == ["agent.spawned", "agent.waiting"]


async def test_least_loaded_fills_evenly_and_pack_fills_up(store: Store) -> None:
    for placement, expected in (("least_loaded", [2, 2]), ("pack", [3, 1])):
        pool = placement.replace("_", "-")
        await seed_pool(store, pool, placement=placement)
        for i in range(2):
            await seed_worker(store, f"{pool}{i}", pool, capacity=3)
        counts = Counter([await seed_agent(store, f"a{i}", pool) for i in range(4)])
        assert sorted(counts.values(), reverse=True) == expected


async def test_refusals_change_nothing(store: Store) -> None:
    with pytest.raises(UnknownPool):
        await seed_agent(store)
    await seed_leader(store)
    with pytest.raises(UnknownPool):
        await seed_agent(store)
    await seed_pool(store, types=["Reviewer", "Planner"])
    await seed_worker(store)
    with pytest.raises(UnknownAgentType, match='Did you mean "Reviewer"') as caught:
        await seed_agent(store, agent_type="Reviever")
    assert sorted(caught.value.known) == ["Planner", "Reviewer"]
    assert await read_agent(store) == {}
    assert await read_free(store) == {"w1": 10}


async def test_a_pool_without_types_knows_no_type(store: Store) -> None:
    await seed_pool(store, types=[])
    with pytest.raises(UnknownAgentType):
        await seed_agent(store)


async def test_name_of_a_live_agent_is_refused(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store, operation="o1")
    before = await read_agent(store)
    with pytest.raises(DuplicateAgent, match="agentpool terminate p/a1"):
        await seed_agent(store, operation="o2")
    assert await read_agent(store) == before
    await store.agents.terminate("p/a1")
    assert await seed_agent(store, operation="o3") == "w1", "free again after its end"
    assert await incarnation(store) > int(before["incarnation"]), "no worker takes it for the one before"


async def test_waiting_agents_are_bounded(store: Store) -> None:
    await seed_pool(store, max_pending=2)
    await seed_agent(store, "a1", operation="o1")
    await seed_agent(store, "a2")
    with pytest.raises(QueueFull) as caught:
        await seed_agent(store, "a3")
    assert (caught.value.depth, caught.value.bound) == (2, 2)
    assert await read_agent(store, "a3") == {}
    assert await seed_agent(store, "a1", operation="o1") is None, "a repeat is no new one"
    await seed_worker(store, capacity=1)
    assert await seed_agent(store, "a3") is None


async def test_placing_repeats(store: Store) -> None:
    await seed_pool(store)
    assert await seed_agent(store, operation="o1") is None
    assert await seed_agent(store, operation="o1") is None
    await seed_worker(store)
    before = await read_agent(store)
    assert await seed_agent(store, operation="o1") == "w1"
    assert await read_agent(store) == before
    assert (await read_events(store)).count("agent.spawned") == 1


async def test_repeat_after_the_end_makes_no_second_agent(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store, operation="o1")
    await store.agents.fail("p", "w1", "a1", await incarnation(store, "a1"), failures=5, error="boom", final=True)
    with pytest.raises(AgentTerminated, match="failed boom"):
        await seed_agent(store, operation="o1")
    assert await read_free(store) == {"w1": 10}


async def test_request_that_comes_after_its_withdrawal_is_refused(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for turn in range(2):
        operation = f"o{turn}"
        assert await store.agents.withdraw("p/a1", operation) is None
        with pytest.raises(AgentTerminated, match="withdrawn"):
            await seed_agent(store, operation=operation)
    assert await seed_agent(store, operation="o9") == "w1"


async def test_fifty_callers_never_get_more_than_there_is(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=7)
    await seed_worker(store, "w2", capacity=13)
    answers = await at_once(50, lambda i: seed_agent(store, f"a{i}"))
    assert Counter(answers) == {"w1": 7, "w2": 13, None: 30}
    assert await read_free(store) == {"w1": 0, "w2": 0}
    assert (await store.pools.observe("p")).pending == 30
    view = await store.workers.view("p", "w1")
    assert view
    assert len(view.agents) == 7


async def test_fifty_repeats_of_one_spawn_are_one_agent(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    answers = await at_once(50, lambda _: seed_agent(store, operation="o1"))
    assert answers == ["w1"] * 50
    assert await read_free(store) == {"w1": 9}
    assert (await read_worker(store))["version"] == "1", "it was placed once"


async def test_fifty_callers_of_one_name_make_one_agent(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    answers = await at_once(50, lambda i: seed_agent(store, operation=f"o{i}"))
    assert Counter(type(answer) for answer in answers) == {str: 1, DuplicateAgent: 49}


# -- place_pending ----------------------------------------------------------------------------------------------


async def seed_room_behind_their_back(store: Store, free: int) -> None:
    """Give room that nobody was told of, as after a lost hint."""
    await seed_worker(store, capacity=0)
    await store.connection.redis.hset(store.keys.process("w1"), "capacity", free)
    await store.connection.redis.zadd(store.keys.processes("p"), {"w1": free})


async def test_those_who_wait_are_placed_longest_first(store: Store) -> None:
    token = await seed_pool(store)
    for i in range(5):
        await seed_agent(store, f"a{i}")
        await store.connection.redis.zadd(store.keys.pending("p"), {f"a{i}": 100 - i})
    await seed_room_behind_their_back(store, 3)
    assert await store.agents.place_pending("p", token, limit=2) == (2, 3, -1)
    assert await store.agents.place_pending("p", token) == (1, 2, -1)
    assert await store.agents.place_pending("p", token) == (0, 2, -1), "a repeat finds no room"
    view = await store.workers.view("p", "w1")
    assert view
    assert sorted(agent.agent_id for agent in view.agents) == ["p/a2", "p/a3", "p/a4"]


async def test_agents_whose_time_has_not_come_keep_waiting(store: Store) -> None:
    token = await seed_pool(store)
    await seed_agent(store)
    now = (await store.pools.observe("p")).now_ms
    await store.connection.redis.zadd(store.keys.pending("p"), {"a1": now + LONG_MS})
    await seed_worker(store)
    placed, due, wait = await store.agents.place_pending("p", token)
    assert (placed, due) == (0, 0)
    assert LONG_MS - 5000 < wait <= LONG_MS
    await store.connection.redis.zadd(store.keys.pending("p"), {"a1": now + 30})
    await wait_until(lambda: placed_any(store, token))
    assert (await read_agent(store))["process_id"] == "w1"


async def placed_any(store: Store, token: str) -> bool:
    return (await store.agents.place_pending("p", token))[0] == 1


async def test_a_past_leader_places_nobody(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store)
    await seed_room_behind_their_back(store, 3)
    old = await seed_leader(store, lease_ms=1)

    async def follow() -> str:
        return (await store.locks.lead("p", "m2", lease_ms=LONG_MS, gap_ms=LONG_MS, hold_ms=0)).token

    await wait_until(follow)
    assert await store.agents.place_pending("p", old) == (0, 0, -1)
    assert await store.agents.place_pending("p", "") == (0, 0, -1)
    assert (await read_agent(store))["status"] == "pending"


async def test_fifty_leaders_turns_place_each_once(store: Store) -> None:
    token = await seed_pool(store)
    for i in range(40):
        await seed_agent(store, f"a{i}")
    await seed_room_behind_their_back(store, 30)
    answers = await at_once(50, lambda _: store.agents.place_pending("p", token, limit=3))
    assert sum(placed for placed, _, _ in answers) == 30
    assert await read_free(store) == {"w1": 0}
    agents = await store.agents.all("p")
    assert sorted(agent.incarnation > 0 for agent in agents) == [False] * 10 + [True] * 30


async def test_operation_and_master_stay_out_of_view(store: Store) -> None:
    """What the record shows are plain fields; the reply channel goes once it was used."""
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1"))
    assert (await read_agent(store))["reply_to"] == ""
    assert (await read_hash(store, store.keys.pool("p")))["leader"] == MASTER
