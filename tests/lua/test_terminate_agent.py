"""terminate_agent: on request, when idle for long, or because the caller stopped waiting."""

import pytest
from support.seeds import (
    at_once,
    exchange,
    finish,
    incarnation,
    listening,
    read_agent,
    read_commands,
    read_events,
    read_free,
    read_history,
    read_outcome,
    read_worker,
    seed_agent,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import AgentTerminated, UnknownAgent
from agentpool.protocol.commands import Terminate
from agentpool.store import Store


async def test_terminated_agent_leaves_nothing_but_history(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, tenant="acme")
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await store.agents.terminate("p/a1") == "w1"
        assert await read_commands(heard) == [Terminate(process_id="w1", agent_id="p/a1", version=2)]
    assert await read_agent(store) == {}
    assert await read_free(store) == {"w1": 10}
    assert (await read_worker(store))["agent_count"] == "0"
    assert await store.connection.redis.smembers(store.keys.tenant_agents("p", "acme")) == set()
    (record,) = await read_history(store)
    assert (record["kind"], record["id"], record["status"]) == ("agent", "p/a1", "terminated")
    assert await store.agents.ended("p/a1") == ("terminated", "terminated on request")
    assert (await read_events(store))[-1] == "agent.terminated"


async def test_terminating_repeats_quietly(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    answers = await at_once(50, lambda _: store.agents.terminate("p/a1"))
    assert sorted(answers) == [""] * 49 + ["w1"]
    assert await read_free(store) == {"w1": 10}
    assert (await read_events(store)).count("agent.terminated") == 1


async def test_unknown_agent_is_refused(store: Store) -> None:
    await seed_pool(store)
    for id in ("p/a1", "q/a1", "a1"):
        with pytest.raises(UnknownAgent):
            await store.agents.terminate(id)


async def test_waiting_agent_can_be_terminated(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store)
    assert await store.agents.terminate("p/a1") == ""
    assert (await store.pools.observe("p")).pending == 0
    assert await store.agents.all("p") == []


async def test_mail_and_run_of_a_terminated_agent_fail(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for id in ("t1", "t2"):
        await seed_task(store, id, agent="a1")
    await exchange(store, names=["a1"])
    await store.agents.terminate("p/a1", detail="enough")
    for id in ("p/t1", "p/t2"):
        ended = await store.tasks.read(id)
        assert ended
        assert ended.error
        assert (ended.status, ended.error.message) == ("agent_terminated", "enough")
    assert (await finish(store, "p/t1", "a1")).stale == ("p/t1",)
    assert await store.connection.redis.hgetall(store.keys.leases("p")) == {}
    assert await store.connection.redis.smembers(store.keys.tenant_tasks("p", "default")) == set()
    with pytest.raises(AgentTerminated, match="enough"):
        await seed_task(store, "t3", agent="a1")


async def test_much_mail_is_failed_in_steps_and_none_is_taken_meanwhile(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for i in range(150):
        await seed_task(store, f"t{i}", agent="a1")
    assert await store.connection.call("terminate_agent", "p", "a1", "test", "", "", 0) == ["more"]
    with pytest.raises(AgentTerminated, match="being terminated"):
        await seed_task(store, "late", agent="a1")
    assert await store.agents.terminate("p/a1") == "w1"
    assert {await read_outcome(store, f"p/t{i}") for i in range(150)} == {"agent_terminated"}


async def test_slot_of_a_terminated_agent_goes_to_the_longest_waiting(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    for i in range(3):
        await seed_agent(store, f"a{i}")
        await store.connection.redis.zadd(store.keys.pending("p"), {f"a{i}": i}, xx=True)
    await store.agents.terminate("p/a0")
    assert (await read_agent(store, "a1"))["process_id"] == "w1"
    assert (await read_agent(store, "a2"))["process_id"] == ""
    assert await read_free(store) == {"w1": 0}


# -- idle for long ----------------------------------------------------------------------------------------------


async def last_used(store: Store) -> int:
    return (await store.agents.get("p/a1")).last_used_at


async def test_idle_agent_is_retired_once(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    since = await last_used(store)
    assert await store.agents.retire_idle("p/a1", since)
    assert await store.agents.retire_idle("p/a1", since)
    assert await read_agent(store) == {}
    assert (await store.agents.ended("p/a1"))[1].startswith("idle for longer")


async def test_agent_that_is_needed_is_not_retired(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    since = await last_used(store)
    assert not await store.agents.retire_idle("p/a1", since), "it is starting"
    await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1"))
    assert not await store.agents.retire_idle("p/a1", since - 1), "it was used in the meantime"
    await seed_task(store, agent="a1")
    assert not await store.agents.retire_idle("p/a1", since), "it has mail"
    await exchange(store, names=["a1"])
    assert not await store.agents.retire_idle("p/a1", since), "it works"
    await finish(store, "p/t1", "a1")
    await store.connection.redis.hset(store.keys.agent("p/a1"), "last_used_at", since)
    assert await store.agents.retire_idle("p/a1", since)


# -- withdrawn --------------------------------------------------------------------------------------------------


async def test_request_that_is_not_fulfilled_is_withdrawn(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store, operation="o1")
    assert await store.agents.withdraw("p/a1", "o1") is None
    assert await store.agents.withdraw("p/a1", "o1") is None
    assert await read_agent(store) == {}
    await seed_worker(store)
    assert await read_free(store) == {"w1": 10}
    await seed_agent(store, "a2", operation="o2")
    assert await store.agents.withdraw("p/a2", "o2") is None, "placed, but not running yet"
    assert await read_free(store) == {"w1": 10}


async def test_agent_that_runs_by_now_is_kept(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, operation="o1")
    assert await store.agents.withdraw("p/a1", "o1") == "w1"
    assert (await read_agent(store))["status"] == "idle"


async def test_agent_that_runs_by_now_is_ended_when_nobody_would_ever_end_it(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, operation="o1")
    assert await store.agents.withdraw("p/a1", "o1", even_running=True) is None
    assert await store.agents.withdraw("p/a1", "o1", even_running=True) is None
    assert await read_agent(store) == {}
    assert await read_free(store) == {"w1": 10}


@pytest.mark.parametrize("even_running", [False, True])
async def test_anothers_agent_is_not_withdrawn(store: Store, even_running: bool) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, operation="o1")
    assert await store.agents.withdraw("p/a1", "o2", even_running=even_running) == "w1"
    assert (await read_agent(store))["status"] == "idle"
