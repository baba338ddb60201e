"""cancel_task: at once while a task waits, wherever it does; by its worker while it runs."""

from collections import Counter

import pytest
from support.seeds import (
    LONG_MS,
    at_once,
    exchange,
    failure,
    finish,
    listening,
    read_commands,
    read_free,
    read_outcome,
    read_replies,
    seed_agent,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import UnknownTask
from agentpool.protocol.commands import Cancel
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import Outcome
from agentpool.store import Store


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
    turns, lane = keys.turns("p", "normal"), keys.lane("p", "normal", "default")
    assert await redis.exists(turns, lane, keys.mailbox("p", "a1")) == 0
    assert (await store.pools.observe("p")).waiting_tasks == 0


async def test_lane_with_other_tasks_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_task(store, "t1")
    await seed_task(store, "t2")
    await store.tasks.cancel("p/t1")
    assert await store.connection.redis.zrange(store.keys.turns("p", "normal"), 0, -1) == ["default"]


async def test_running_task_is_cancelled_by_its_worker(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
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
    await finish(store, task, result=Outcome(status=TaskStatus.CANCELLED))
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
        return await exchange(store, number=i + 1, room=1)

    answers = await at_once(100, either)
    words = Counter(answer for answer in answers if isinstance(answer, str))
    running = (await store.pools.observe("p")).running_tasks
    assert words["cancelled"] + running + (await store.pools.observe("p")).waiting_tasks == 50
    assert set(words) <= {"cancelled", "asked"}
    assert await read_free(store) == {"w1": 100 - running}


@pytest.mark.parametrize("where", ["delayed", "suspect", "retried"])
async def test_a_task_is_cancelled_wherever_it_waits(store: Store, where: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    if where == "delayed":
        await seed_task(store, delay=LONG_MS, expires=LONG_MS)
    else:
        await seed_lease(store)
    if where == "retried":
        await finish(store, verdict="retry", delay_ms=LONG_MS)
    if where == "suspect":
        blame = {"p/t1": "suspect"}
        await store.workers.reap("p", "w1", proof="owner", authority="m1", reason="killed", blame=blame)
    assert await store.tasks.cancel("p/t1") == "cancelled"
    assert await store.tasks.cancel("p/t1") == "finished"
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.due("p"), keys.suspects("p"), keys.attempts("p"), keys.errors("p", "p/t1")) == 0


@pytest.mark.parametrize("verdict", ["retry", "back"])
async def test_what_shall_be_cancelled_is_not_tried_again(store: Store, verdict: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    await store.tasks.cancel(task)
    await finish(store, verdict=verdict)
    assert await read_outcome(store) == "cancelled"


async def test_an_outcome_that_came_before_the_cancel_was_heard_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    await store.tasks.cancel(task)
    await finish(store)
    assert await read_outcome(store) == "succeeded"


async def test_an_outcome_tells_how_many_attempts_began(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_task(store, "never")
    await store.tasks.cancel("p/never")
    assert (await store.tasks.info("p/never"))["attempts"] == 0
    tried = await seed_lease(store, "tried")
    for delay_ms in (0, LONG_MS):
        await finish(store, tried, verdict="retry", delay_ms=delay_ms)
        await exchange(store, room=1)
    await store.tasks.cancel(tried)
    assert (await store.tasks.info(tried))["attempts"] == 2
    running = await seed_lease(store, "running")
    await store.tasks.cancel(running)
    await finish(store, running, verdict="retry", result=failure())
    assert (await store.tasks.info(running))["attempts"] == 1
    taken = await seed_lease(store, "taken")
    await store.tasks.cancel(taken)
    await finish(store, taken, verdict="back", result=failure())
    assert (await store.tasks.info(taken))["attempts"] == 0


async def test_what_ends_with_its_agent_tells_how_many_attempts_began(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_lease(store, "runs", agent="a1")
    await seed_task(store, "waits", agent="a1")
    await store.agents.terminate("p/a1")
    assert [(await store.tasks.info(f"p/{id}"))["attempts"] for id in ("runs", "waits")] == [1, 0]


async def test_what_another_asked_for_with_its_key_is_not_withdrawn(store: Store) -> None:
    await seed_pool(store)
    for _ in range(2):
        assert await seed_task(store, key="k", digest="d") == "p/t1", "its own repeat, after a lost reply"
    assert await seed_task(store, "t2", key="k", digest="d") == "p/t1"
    assert [await store.tasks.withdraw("p/t1") for _ in range(2)] == ["shared", "shared"]
    assert await read_outcome(store) == ""
    assert await store.tasks.cancel("p/t1") == "cancelled"
    assert await store.connection.redis.pttl(store.keys.key("p", "k")) > 0
    assert await seed_task(store, "t3", key="k", digest="d") == "p/t1"
    assert await store.connection.redis.pttl(store.keys.key("p", "k")) > 0


@pytest.mark.parametrize("runs", [False, True])
async def test_the_key_of_what_is_withdrawn_is_free(store: Store, runs: bool) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_task(store, key="k", digest="d")
    if runs:
        await exchange(store, room=1)
    assert await store.tasks.withdraw("p/t1") == ("asked" if runs else "cancelled")
    assert await seed_task(store, "t2", key="k", digest="other") == "p/t2"
    assert await store.tasks.withdraw("p/t1") == ("asked" if runs else "finished")
    await finish(store, verdict="back")
    assert await read_outcome(store) == "cancelled"
    assert await store.connection.redis.pttl(store.keys.key("p", "k")) == -1, "the key is another's"
    assert await seed_task(store, "t3", key="k", digest="other") == "p/t2"
