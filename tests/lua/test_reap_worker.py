"""reap_worker: who may say that a worker is dead, and what becomes of all it held."""

import asyncio
from typing import Any

import pytest
from support.seeds import (
    LONG_MS,
    MASTER,
    at_once,
    ended,
    exchange,
    ids,
    incarnation,
    listening,
    read_agent,
    read_commands,
    read_events,
    read_free,
    read_hash,
    read_history,
    read_outcome,
    read_replies,
    read_worker,
    seed_agent,
    seed_leader,
    seed_lease,
    seed_order,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)
from support.wait import wait_until

from agentpool.protocol.commands import Shutdown, TasksDone
from agentpool.store import Store


async def reap(store: Store, worker: str = "w1", **more: Any) -> str:
    return await store.workers.reap(
        "p", worker, **{"proof": "owner", "authority": MASTER, "reason": "killed (signal 9)"} | more
    )


async def reap_some(store: Store, limit: int, worker: str = "w1") -> list[Any]:
    """One call of the script with a small limit."""
    answer: list[Any] = await store.connection.call(
        "reap_worker", "p", worker, "owner", MASTER, 0, "killed (signal 9)", limit, 5, 500
    )
    return answer


# -- what becomes of it -----------------------------------------------------------------------------------------


async def test_agents_are_placed_again_and_tasks_go_back_to_where_they_waited(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_running_agent(store, "idle")
    await seed_running_agent(store, "busy")
    await seed_task(store, "t1", agent="busy")
    await seed_task(store, "t2")
    await seed_task(store, "t3", agent="busy")
    await exchange(store, room=1, names=["busy"])
    await seed_task(store, "t4")
    await seed_worker(store, "w2")
    before = {name: await incarnation(store, name) for name in ("idle", "busy")}
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await reap(store) == "done"
        assert await read_commands(heard) == [Shutdown(process_id="w1")]
    for name in ("idle", "busy"):
        agent = await read_agent(store, name)
        assert (agent["status"], agent["process_id"]) == ("placed", "w2")
        assert int(agent["incarnation"]) > before[name]
        assert (agent["task_id"], agent["crashes"]) == ("", "0")
    redis, keys = store.connection.redis, store.keys
    assert await redis.zrange(keys.mailbox("p", "busy"), 0, -1) == ["p/t1", "p/t3"], "it is the first again"
    assert await redis.zrange(keys.lane("p", "normal", "default"), 0, -1) == ["p/t2", "p/t4"]
    assert await redis.smembers(keys.tenant_tasks("p", "default")) == set()
    assert await redis.hgetall(keys.leases("p")) == {}
    assert await redis.hgetall(keys.attempts("p")) == {}, "nobody is to blame"
    assert await read_worker(store, "w1") == {}
    assert await read_free(store) == {"w2": 8}
    assert [fields["status"] for fields in await read_history(store)] == ["lost"]
    assert (await read_events(store))[-1] == "worker.reaped"
    found = await exchange(store, "w2", room=2)
    assert ids(found) == ["p/t2", "p/t4"]
    assert [task.attempt for task in found.tasks] == [1, 1], "a death is no attempt"


async def test_what_shall_be_cancelled_when_its_worker_dies_is_cancelled(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    assert await store.tasks.cancel(task) == "asked"
    async with listening(store, store.keys.client_channel("c")) as heard:
        await reap(store)
        (reply,) = await read_replies(heard)
    assert isinstance(reply, TasksDone)
    assert await read_outcome(store) == "cancelled"


async def test_who_blocked_its_worker_past_its_own_time_has_timed_out(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    async with listening(store, store.keys.client_channel("c")) as heard:
        assert await reap(store, blame={"p/t1": "overdue"}) == "done"
        (reply,) = await read_replies(heard)
    assert isinstance(reply, TasksDone)
    assert await read_outcome(store) == "timed_out"


async def test_agents_wait_when_no_other_worker_has_room(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    assert await reap(store) == "done"
    agent = await read_agent(store)
    assert (agent["status"], agent["process_id"]) == ("pending", "")
    assert await store.agents.names("p") == ["a1"]
    await seed_worker(store, "w2")
    assert (await read_agent(store))["process_id"] == "w2"


async def test_much_is_moved_in_small_steps_that_anyone_can_go_on_with(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=20)
    for i in range(6):
        await seed_running_agent(store, f"a{i}")
    for i in range(4):
        await seed_task(store, f"t{i}")
    for i in range(2):
        await seed_task(store, f"m{i}", agent=f"a{i}")
    await exchange(store, room=4, names=["a0", "a1"])
    await seed_worker(store, "w2")
    left = []
    while (answer := await reap_some(store, 3))[0] == "more":
        assert answer[1] == 3
        assert (await read_worker(store))["status"] == "lost"
        assert await store.workers.lost("p") == ["w1"]
        assert await read_free(store) in ({"w2": 10 - n} for n in range(7))
        stats = await store.pools.stats("p", await store.workers.all("p"))
        assert stats.agent_count == 6, "none is counted twice"
        left.append(await read_worker(store))
    assert [int(fields["agent_count"]) for fields in left] == [6, 6, 3]
    assert answer == ["done", 3]
    assert (await read_events(store)).count("worker.lost") == 1
    assert await reap_some(store, 3) == ["gone"]
    assert await store.workers.lost("p") == []
    assert (await store.workers.all("p"))[0].agent_count == 6


async def test_reaping_repeats_as_gone(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert await reap(store) == "done"
    assert await reap(store) == "gone"
    assert await reap(store, "unknown") == "gone"
    assert (await read_events(store)).count("worker.reaped") == 1


async def test_fifty_reapers_move_everything_once(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=40)
    for i in range(40):
        await seed_running_agent(store, f"a{i}")
    await seed_worker(store, "w2", capacity=100)
    before = {agent.agent_id: agent.incarnation for agent in await store.agents.all("p")}
    answers = await at_once(50, lambda _: reap_some(store, 7))
    assert sorted({answer[0] for answer in answers}) == ["done", "gone", "more"]
    agents = await store.agents.all("p")
    assert all(agent.incarnation > before[agent.agent_id] for agent in agents)
    assert await read_free(store) == {"w2": 60}


async def test_reaped_worker_that_wakes_up_is_refused_everywhere(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, agent="a1")
    await exchange(store, names=["a1"])
    old = await incarnation(store)
    await reap(store)
    await seed_worker(store, "w2")
    assert await store.tasks.exchange("p", "w1", 9999, room=5, ended=[ended("p/t1", "a1")], names=["a1"]) is None
    assert await read_outcome(store) == "", "what it hands in late is not taken"
    assert await store.agents.confirm("p", "w1", "a1", old) is None
    assert not await store.agents.fail("p", "w1", "a1", old, failures=1, error="late", final=True)
    assert await store.agents.release("p", "w1", "a1", old) == "stale"
    assert await store.workers.view("p", "w1") is None
    assert await store.workers.retire("p", "w1", reason="late")
    assert (await read_agent(store))["process_id"] == "w2"
    assert await read_worker(store, "w1") == {}


# -- agents that were starting ----------------------------------------------------------------------------------


async def test_first_crash_while_starting_places_again_later_ones_wait(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_agent(store)
    await seed_worker(store, "w2")
    await reap(store, "w1")
    agent = await read_agent(store)
    assert (agent["status"], agent["process_id"], agent["crashes"]) == ("placed", "w2", "1")
    await seed_worker(store, "w3")
    await reap(store, "w2", backoff_ms=LONG_MS)
    agent = await read_agent(store)
    assert (agent["status"], agent["crashes"]) == ("pending", "2")
    assert "its worker was lost" in agent["last_error"]
    assert await read_free(store) == {"w3": 10}
    view = await store.pools.observe("p")
    assert (view.pending, view.due) == (1, 0), "not before its time"


async def test_backoff_doubles_and_ends(store: Store) -> None:
    await seed_pool(store)
    delays = []
    for turn in range(4):
        worker = await seed_worker(store, f"w{turn}")
        if turn == 0:
            await seed_agent(store)
        else:
            await store.connection.redis.zadd(store.keys.pending("p"), {"a1": 0})
            token = await seed_leader(store)
            assert (await store.agents.place_pending("p", token))[0] == 1
        await reap(store, worker, backoff_ms=10_000)
        due = await store.connection.redis.zscore(store.keys.pending("p"), "a1")
        delays.append(round((due - (await store.pools.observe("p")).now_ms) / 10_000))
    assert delays == [0, 1, 2, 4]


async def test_agent_whose_worker_keeps_dying_is_given_up(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_agent(store)
    await seed_task(store, agent="a1")
    await seed_worker(store, "w2")
    async with listening(store, store.keys.client_channel("c")) as heard:
        await reap(store, "w1", crashes_max=2)
        await reap(store, "w2", crashes_max=2)
        types = [type(reply).__name__ for reply in await read_replies(heard)]
    assert types == ["TasksDone", "AgentEnded"]
    assert await read_agent(store) == {}
    assert await read_outcome(store) == "agent_terminated"
    assert (await store.agents.ended("p/a1"))[0] == "failed"
    assert "agent.failed" in await read_events(store)
    assert await store.connection.redis.smembers(store.keys.tenant_agents("p", "default")) == set()


async def test_nobody_is_given_up_for_the_company_it_was_in(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w0")
    for name in ("a1", "a2"):
        await seed_agent(store, name)
    dues: set[float] = set()
    for turn in range(4):
        await reap(store, f"w{turn}", crashes_max=1, backoff_ms=10_000)
        dues.update((await store.connection.redis.zrange(store.keys.pending("p"), 0, -1, withscores=True))[-1:])
        for name in ("a1", "a2"):
            assert (await read_agent(store, name))["crashes_alone"] == "0"
            await store.connection.redis.zadd(store.keys.pending("p"), {name: 0})
        await seed_worker(store, f"w{turn + 1}")
    assert len(dues) == 4, "ever further apart, until one of them starts alone"
    await store.agents.confirm("p", "w4", "a2", int((await read_agent(store, "a2"))["incarnation"]))
    await reap(store, "w4", crashes_max=1)
    assert (await store.agents.ended("p/a1"))[0] == "failed"
    assert (await read_agent(store, "a2"))["status"] == "pending"


async def test_an_agent_that_started_beside_a_task_is_not_given_up(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_agent(store)
    await seed_lease(store)
    await reap(store, "w1", crashes_max=1)
    assert (await read_agent(store))["crashes_alone"] == "0"


async def test_an_agent_that_ran_counts_no_crash(store: Store) -> None:
    await seed_pool(store)
    for turn in range(3):
        await seed_worker(store, f"w{turn}")
        if turn == 0:
            await seed_agent(store)
        assert await store.agents.confirm("p", f"w{turn}", "a1", await incarnation(store)) is not None
        await reap(store, f"w{turn}", crashes_max=1)
    assert (await read_agent(store))["crashes"] == "0"


# -- who may say so ---------------------------------------------------------------------------------------------


async def test_owner_is_its_master_and_nobody_else(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert await reap(store, authority="m2") == "fenced"
    assert (await read_worker(store))["status"] == "ready"
    assert await reap(store, authority=MASTER) == "done"


async def test_silence_is_measured_by_the_server(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store)
    assert await reap(store, proof="stale", authority=token, timeout_ms=LONG_MS) == "alive"
    await asyncio.sleep(0.02)
    await seed_leader(store)
    assert await reap(store, proof="stale", authority=token, timeout_ms=10) == "done"


@pytest.mark.parametrize("proof", ["stale", "unstarted", "lost"])
async def test_a_past_leader_reaps_nothing(store: Store, proof: str) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    if proof == "stale":
        await store.connection.call("register_worker", "p", "w1", "secret of w1", 1, "pid", 1)
    old = await seed_leader(store, lease_ms=1)

    async def follow() -> str:
        return (await store.locks.lead("p", "m2", lease_ms=LONG_MS, gap_ms=LONG_MS, hold_ms=0)).token

    new = await wait_until(follow)
    assert await reap(store, proof=proof, authority=old) == "fenced"
    assert await reap(store, proof=proof, authority="") == "fenced"
    assert await reap(store, proof=proof, authority=new) == ("alive" if proof == "lost" else "done")


async def test_only_a_worker_that_never_registered_is_unstarted(store: Store) -> None:
    token = await seed_pool(store)
    await seed_order(store, "w1")
    await seed_worker(store, "w2")
    assert await reap(store, "w1", proof="unstarted", authority=token, timeout_ms=LONG_MS) == "alive"
    assert await reap(store, "w1", proof="unstarted", authority=token, timeout_ms=0) == "done"
    assert await reap(store, "w2", proof="unstarted", authority=token, timeout_ms=0) == "alive"


async def test_hold_stops_reaping_by_time_but_not_by_sight(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_worker(store, "w2")
    await asyncio.sleep(0.005)
    await store.locks.lead("p", MASTER, lease_ms=LONG_MS, gap_ms=0, hold_ms=LONG_MS)
    assert await reap(store, "w1", proof="stale", authority=token, timeout_ms=0) == "held"
    assert await reap(store, "w1", proof="owner") == "done"
    await store.connection.redis.hset(store.keys.pool("p"), "hold_until", 0)
    assert await reap(store, "w2", proof="stale", authority=token, timeout_ms=0) == "done"


async def test_a_leader_that_missed_its_turn_is_held(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store)
    tick = int((await read_hash(store, store.keys.pool("p")))["tick"])
    await store.connection.redis.hset(store.keys.pool("p"), "tick", tick - 3000)
    assert await reap(store, proof="stale", authority=token, timeout_ms=0) == "held"
    await seed_leader(store)
    assert await reap(store, proof="stale", authority=token, timeout_ms=0) == "done"


async def test_another_leader_goes_on_with_a_fenced_worker(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store, capacity=5)
    for i in range(5):
        await seed_running_agent(store, f"a{i}")
    assert (await reap_some(store, 2))[0] == "more"
    assert await reap(store, proof="lost", authority=token) == "done"
    assert (await store.pools.observe("p")).pending == 5
