"""confirm_agent, fail_agent: what a worker says of an agent's start."""

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
    read_replies,
    seed_agent,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import AgentTerminated
from agentpool.protocol.commands import AgentEnded, AgentReady, Terminate
from agentpool.store import Store


async def fail(
    store: Store,
    *,
    final: bool = False,
    failures: int = 1,
    later: int = 0,
    worker: str = "w1",
    error: str = "ValueError: no",
) -> bool:
    number = await incarnation(store) + later
    return await store.agents.fail("p", worker, "a1", number, failures=failures, error=error, final=final)


# -- confirm_agent ----------------------------------------------------------------------------------------------


async def test_confirmed_agent_is_idle_and_its_client_is_told(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    await seed_task(store, agent="a1")
    async with listening(store, store.keys.client_channel("c")) as heard:
        assert await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1")) == 1
        assert await read_replies(heard) == [AgentReady(agent_id="p/a1", process_id="w1")]
    agent = await read_agent(store)
    assert (agent["status"], agent["failures"], agent["crashes"]) == ("idle", "0", "0")
    assert int(agent["started_at"]) >= int(agent["placed_at"])
    assert (await read_events(store))[-1] == "agent.started"


async def test_confirming_repeats_quietly(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    async with listening(store, store.keys.client_channel("c")) as heard:
        number = await incarnation(store)
        assert await at_once(50, lambda _: store.agents.confirm("p", "w1", "a1", number)) == [0] * 50
        assert len(await read_replies(heard)) == 1
    assert (await read_events(store)).count("agent.started") == 1


async def test_confirming_leaves_a_busy_agent_busy(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, agent="a1")
    await exchange(store, names=["a1"])
    assert await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1")) == 0
    assert (await read_agent(store))["status"] == "active"


async def test_confirming_what_is_anothers_now_is_stale(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    assert await store.agents.confirm("p", "w1", "a1", await incarnation(store) + 1) is None
    assert await store.agents.confirm("p", "w2", "a1", await incarnation(store, "a1")) is None
    assert await store.agents.confirm("p", "w1", "unknown", 1) is None
    assert (await read_agent(store))["status"] == "placed"


# -- fail_agent -------------------------------------------------------------------------------------------------


async def test_failure_that_is_tried_again_keeps_the_place(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    for _ in range(2):
        assert await fail(store, failures=1)
    agent = await read_agent(store)
    assert (agent["status"], agent["process_id"], agent["failures"]) == ("placed", "w1", "1")
    assert agent["last_error"] == "ValueError: no"
    assert await read_free(store) == {"w1": 9}
    assert await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1")) == 0
    agent = await read_agent(store)
    assert (agent["failures"], agent["last_error"]) == ("0", "ValueError: no"), "why it failed can still be read"
    events = await read_events(store)
    assert (events.count("agent.start_failed"), events.count("agent.broke")) == (2, 0)


async def test_failure_of_a_running_agent_makes_it_start_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    assert await fail(store)
    assert (await read_agent(store))["status"] == "placed"
    assert (await read_events(store))[-1] == "agent.broke"
    await seed_task(store, agent="a1")
    claim = await exchange(store, names=["a1"])
    assert claim.tasks == (), "it takes no task until it runs again"


async def test_failure_during_a_task_leaves_the_task_alone(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, agent="a1")
    await exchange(store, names=["a1"])
    assert await fail(store)
    agent = await read_agent(store)
    assert (agent["status"], agent["task_id"]) == ("active", "p/t1")
    assert (await read_events(store))[-1] == "agent.broke"
    assert (await finish(store, "p/t1", "a1")).stale == ()


async def test_last_failure_ends_the_agent(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    await seed_agent(store)
    await seed_task(store, agent="a1")
    await seed_agent(store, "a2")
    async with listening(store, store.keys.client_channel("c")) as heard:
        assert await fail(store, final=True, failures=5)
        replies = await read_replies(heard)
    assert replies[-1] == AgentEnded(agent_id="p/a1", status="failed", detail="ValueError: no")
    assert await read_outcome(store) == "agent_terminated"
    assert await read_agent(store) == {}
    assert (await read_agent(store, "a2"))["process_id"] == "w1", "its slot goes to the next"
    assert (await read_history(store))[-1]["status"] == "failed"
    assert await store.agents.ended("p/a1") == ("failed", "ValueError: no")
    with pytest.raises(AgentTerminated, match="failed ValueError: no"):
        await seed_task(store, "t2", agent="a1")
    assert not await fail(store, final=True, failures=5), "a repeat is stale"


async def test_last_failure_of_an_agent_with_much_mail(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    for i in range(230):
        await seed_task(store, f"t{i}", agent="a1")
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await fail(store, final=True)
        assert await read_commands(heard) == [Terminate(process_id="w1", agent_id="p/a1", version=2)]
    assert {await read_outcome(store, f"p/t{i}") for i in range(230)} == {"agent_terminated"}


async def test_failure_of_what_is_anothers_now_is_stale(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    assert not await fail(store, later=1, final=True)
    assert not await fail(store, worker="w2", final=True)
    assert (await read_agent(store))["failures"] == "0"


async def test_error_text_may_be_anything(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    error = 'Fehler "ü" \\ / \n\x00 😀 ' + "x" * 5000
    async with listening(store, store.keys.client_channel("c")) as heard:
        assert await fail(store, final=True, error=error)
        (reply,) = await read_replies(heard)
    assert isinstance(reply, AgentEnded)
    assert reply.detail == error
