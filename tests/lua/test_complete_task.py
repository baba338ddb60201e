"""complete_task, cancel_task: how a task ends, once."""

from collections import Counter

import msgspec
import pytest
from support.seeds import (
    at_once,
    failure,
    listening,
    outcome,
    read_agent,
    read_commands,
    read_free,
    read_outcome,
    read_replies,
    read_texts,
    read_worker,
    seed_agent,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import UnknownTask
from agentpool.protocol.commands import Cancel, TaskDone
from agentpool.protocol.records import Outcome, TaskEnvelope, TaskHeader
from agentpool.protocol.states import TaskStatus
from agentpool.store import Store


async def seed_leased(store: Store, id: str = "t1", number: int = 1, *, agent: str = "") -> str:
    task = await seed_task(store, id, agent=agent)
    claim = await store.tasks.claim("p", "w1", number, by_type=0 if agent else 1, names=[agent] if agent else [])
    assert claim
    assert [claimed.id for claimed in claim.tasks] == [task]
    return task


# -- complete_task ----------------------------------------------------------------------------------------------


async def test_outcome_is_recorded_and_told(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_leased(store)
    result = outcome(result={"list": [], "big": 2**63 - 1, "text": "ü😀"})
    async with listening(store, store.keys.client_channel("c")) as heard:
        assert await store.tasks.complete("w1", task, "", result) == (0, 0)
        (reply,) = await read_replies(heard)
    assert isinstance(reply, TaskDone)
    assert reply.task_id == task
    assert msgspec.json.decode(reply.outcome, type=Outcome) == result
    assert await store.tasks.read(task) == result
    assert (await store.tasks.info(task))["result"] == {"list": [], "big": 2**63 - 1, "text": "ü😀"}
    assert await read_free(store) == {"w1": 10}
    assert (await read_worker(store))["task_count"] == "0"
    assert await store.connection.redis.hgetall(store.keys.leases("p")) == {}
    assert await store.connection.redis.smembers(store.keys.tenant_tasks("p", "default")) == set()


async def test_large_outcome_is_to_be_fetched(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_leased(store)
    result = outcome(result="x" * 5000)
    async with listening(store, store.keys.client_channel("c")) as heard:
        await store.tasks.complete("w1", task, "", result)
        assert await read_replies(heard) == [TaskDone(task_id=task, outcome=None)]
    assert await store.tasks.read(task) == result


async def test_task_that_nobody_waits_for_is_told_to_nobody(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tasks.submit("p/t1", TaskHeader("", "", "R", "default"), TaskEnvelope(msgspec.Raw(b"1")))
    await store.tasks.claim("p", "w1", 1, by_type=1, names=[])
    async with listening(store, store.keys.client_channel(""), "-") as heard:
        await store.tasks.complete("w1", "p/t1", "", failure())
        assert await read_texts(heard) == []
    assert await read_outcome(store) == "failed"


async def test_pinned_agent_is_idle_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    before = await read_agent(store)
    task = await seed_leased(store, agent="a1")
    await seed_task(store, "t2", agent="a1")
    await seed_task(store, "t3")
    assert await store.tasks.complete("w1", task, "a1", outcome()) == (1, 1)
    agent = await read_agent(store)
    assert (agent["status"], agent["task_id"], agent["run_count"]) == ("idle", "", "1")
    assert int(agent["last_used_at"]) >= int(before["last_used_at"])


async def test_completing_repeats(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    task = await seed_leased(store, agent="a1")
    async with listening(store, store.keys.client_channel("c")) as heard:
        answers = await at_once(50, lambda _: store.tasks.complete("w1", task, "a1", outcome()))
        assert len(await read_replies(heard)) == 1
    assert answers == [(0, 0)] * 50
    assert (await read_agent(store))["run_count"] == "1"


async def test_first_outcome_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_leased(store)
    outcomes = [outcome(result=i) for i in range(50)]
    answers = await at_once(50, lambda i: store.tasks.complete("w1", task, "", outcomes[i]))
    assert Counter(answers) == {(0, 0): 1, None: 49}
    assert await store.tasks.read(task) == outcomes[answers.index((0, 0))]


async def test_holder_of_no_lease_is_stale(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert await store.tasks.complete("w1", "p/unknown", "", outcome()) is None
    await seed_task(store)
    assert await store.tasks.complete("w1", "p/t1", "", outcome()) is None, "not claimed"
    await store.tasks.claim("p", "w1", 1, by_type=1, names=[])
    assert await store.tasks.complete("w2", "p/t1", "", outcome()) is None
    assert await read_outcome(store) == ""


async def test_slot_of_a_finished_task_goes_to_an_agent_that_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    task = await seed_leased(store)
    assert await seed_agent(store) is None
    await store.tasks.complete("w1", task, "", outcome())
    assert (await read_agent(store))["process_id"] == "w1"
    assert await read_free(store) == {"w1": 0}


async def test_draining_worker_finishes_what_it_has(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_leased(store)
    await store.workers.drain("p", "w1", reason="test")
    assert await seed_agent(store) is None
    assert await store.tasks.complete("w1", task, "", outcome()) == (0, 0)
    assert (await read_agent(store))["process_id"] == "", "a draining worker takes no agent"


async def test_settled_tasks_are_told_apart(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_leased(store, "t1")
    await seed_task(store, "t2")
    await store.tasks.complete("w1", "p/t1", "", outcome())
    assert await store.tasks.settled(["p/t1", "p/t2", "p/unknown"]) == ["p/t1", "p/unknown"]


# -- cancel_task ------------------------------------------------------------------------------------------------


async def test_waiting_tasks_are_cancelled_at_once(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store)
    by_agent, by_type = await seed_task(store, "t1", agent="a1"), await seed_task(store, "t2")
    async with listening(store, store.keys.client_channel("c")) as heard:
        for task in (by_agent, by_type):
            assert await store.tasks.cancel(task) == "cancelled"
            assert await store.tasks.cancel(task) == "finished"
            assert await read_outcome(store, task) == "cancelled"
        assert len(await read_replies(heard)) == 2
    view = await store.pools.observe("p")
    assert view.waiting_tasks == 0
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.lanes("p"), keys.lane("p", "R", "default"), keys.mailbox("p", "a1")) == 0


async def test_lane_with_other_tasks_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_task(store, "t1")
    await seed_task(store, "t2")
    await store.tasks.cancel("p/t1")
    assert await store.connection.redis.zrange(store.keys.lanes("p"), 0, -1) == ["R:default"]


async def test_running_task_is_cancelled_by_its_worker(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_leased(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await store.tasks.cancel(task) == "asked"
        assert await store.tasks.cancel(task) == "asked"
        assert await read_commands(heard) == [
            Cancel(process_id="w1", version=1, task_id=task),
            Cancel(process_id="w1", version=2, task_id=task),
        ]
    view = await store.workers.view("p", "w1")
    assert view
    assert view.cancels == (task,)
    await store.tasks.complete("w1", task, "", Outcome(status=TaskStatus.CANCELLED))
    assert await store.tasks.cancel(task) == "finished"
    view = await store.workers.view("p", "w1")
    assert view
    assert view.cancels == ()


async def test_unknown_task_is_refused(store: Store) -> None:
    await seed_pool(store)
    for verb in (store.tasks.cancel, store.tasks.read, store.tasks.info):
        with pytest.raises(UnknownTask):
            await verb("p/unknown")


async def test_fifty_cancels_race_with_fifty_claims(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=100)
    for i in range(50):
        await seed_task(store, f"t{i}")

    async def either(i: int) -> object:
        if i % 2:
            return await store.tasks.cancel(f"p/t{i // 2}")
        return await store.tasks.claim("p", "w1", i + 1, by_type=1, names=[])

    answers = await at_once(100, either)
    words = Counter(answer for answer in answers if isinstance(answer, str))
    running = (await store.pools.observe("p")).running_tasks
    assert words["cancelled"] + running + (await store.pools.observe("p")).waiting_tasks == 50
    assert set(words) <= {"cancelled", "asked"}
    assert await read_free(store) == {"w1": 100 - running}
