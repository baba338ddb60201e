"""fire_timers: what waits for its time begins, ends or is promoted then, once."""

import asyncio

import pytest
from support.seeds import (
    LONG_MS,
    at_once,
    exchange,
    finish,
    ids,
    listening,
    read_commands,
    read_outcome,
    read_replies,
    read_texts,
    seed_agent,
    seed_host,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.commands import TasksDone, Wake
from agentpool.store import Store


async def pass_time(store: Store, *timers: str) -> None:
    """Let the time of these timers have come."""
    await store.connection.redis.zadd(store.keys.due("p"), {timer: 1 + n for n, timer in enumerate(timers)}, xx=True)


async def timers(store: Store) -> list[str]:
    found: list[str] = await store.connection.redis.zrange(store.keys.due("p"), 0, -1)
    return found


async def test_nothing_is_due(store: Store) -> None:
    await seed_pool(store)
    assert await store.connection.call("fire_timers", "p", 100) == ["ok", 0, -1]


async def test_delayed_tasks_begin_when_their_time_comes(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    async with listening(store, store.keys.leader_channel("p"), store.keys.pool_channel("p")) as heard:
        await seed_task(store, "t1", delay=LONG_MS)
        await seed_task(store, "m1", agent="a1", delay=2 * LONG_MS)
        assert await read_texts(heard) == ["timer"], "only the next timer is news"
    assert (await store.tasks.info("p/t1"))["status"] == "delayed"
    assert (await store.pools.observe("p")).waiting_tasks == 0
    assert ids(await exchange(store, room=9, names=["a1"])) == []
    assert LONG_MS - 5000 < await store.tasks.fire_timers("p") <= LONG_MS
    await pass_time(store, "start p/t1", "start p/m1")
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await store.tasks.fire_timers("p") == -1
        wakes = await read_commands(heard)
    assert sorted(command.agent_id for command in wakes if isinstance(command, Wake)) == ["", "p/a1"]
    assert ids(await exchange(store, room=9, names=["a1"])) == ["p/m1", "p/t1"]


async def test_fifty_who_watch_fire_each_timer_once(store: Store) -> None:
    await seed_pool(store)
    for n in range(30):
        await seed_task(store, f"t{n}", delay=1)
    await asyncio.sleep(0.005)
    answers = await at_once(50, lambda _: store.connection.call("fire_timers", "p", 7))
    assert sum(int(answer[1]) for answer in answers) == 30
    assert max(int(answer[1]) for answer in answers) == 7
    assert (await store.pools.observe("p")).waiting_tasks == 30


async def test_more_than_one_call_may_do_is_done_too(store: Store) -> None:
    await seed_pool(store)
    for n in range(250):
        await seed_task(store, f"t{n}", delay=1)
    await asyncio.sleep(0.005)
    assert await store.tasks.fire_timers("p") == -1
    assert (await store.pools.observe("p")).waiting_tasks == 250


async def test_a_delayed_task_of_an_agent_that_ended_ends_with_it(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, agent="a1", delay=LONG_MS)
    await store.agents.terminate("p/a1")
    await pass_time(store, "start p/t1")
    async with listening(store, store.keys.client_channel("c")) as heard:
        await store.tasks.fire_timers("p")
        (reply,) = await read_replies(heard)
    assert isinstance(reply, TasksDone)
    assert await read_outcome(store) == "agent_terminated"
    assert await store.connection.redis.exists(store.keys.mailbox("p", "a1")) == 0


@pytest.mark.parametrize("where", ["lane", "mailbox", "delayed"])
async def test_what_nobody_takes_in_time_expires(store: Store, where: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    delay = {"delay": 2 * LONG_MS} if where == "delayed" else {}
    await seed_task(store, agent="a1" if where == "mailbox" else "", expires=LONG_MS, **delay)
    await pass_time(store, "expire p/t1")
    async with listening(store, store.keys.client_channel("c")) as heard:
        await store.tasks.fire_timers("p")
        (reply,) = [reply for reply in await read_replies(heard) if isinstance(reply, TasksDone)]
    assert [(id, str(outcome.status)) for id, outcome in reply.tasks if outcome] == [("p/t1", "expired")]
    assert await read_outcome(store) == "expired"
    assert await timers(store) == []
    assert (await store.pools.observe("p")).waiting_tasks == 0


async def test_what_has_begun_does_not_expire_when_it_waits_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store, expires=LONG_MS)
    blame = {"p/t1": "suspect"}
    await store.workers.reap("p", "w1", proof="owner", authority="m1", reason="killed", blame=blame)
    await pass_time(store, "expire p/t1")
    await store.tasks.fire_timers("p")
    assert await read_outcome(store) == ""
    assert (await store.pools.observe("p")).waiting_tasks == 1


async def test_what_runs_does_not_expire(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store, expires=LONG_MS)
    await pass_time(store, "expire p/t1")
    await store.tasks.fire_timers("p")
    assert (await store.tasks.info("p/t1"))["status"] == "leased"


@pytest.mark.parametrize("end", ["done", "cancel", "terminate"])
async def test_timers_end_with_their_task(store: Store, end: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    options = {"expires": LONG_MS, "batch": True}
    if end == "done":
        await seed_lease(store, lane="batch", **options)
        await finish(store)
    elif end == "cancel":
        await seed_task(store, lane="batch", delay=LONG_MS, **options)
        await store.tasks.cancel("p/t1")
    else:
        await seed_task(store, agent="a1", expires=LONG_MS)
        await store.agents.terminate("p/a1")
    assert await read_outcome(store)
    assert await timers(store) == []


async def test_a_batch_task_that_waited_long_enough_keeps_its_time(store: Store) -> None:
    await seed_pool(store)
    await seed_host(store, "h1", ["gpu"])
    await seed_task(store, "b", lane="batch+gpu", batch=True)
    await seed_task(store, "t", lane="normal+gpu")
    await pass_time(store, "promote p/b")
    await store.tasks.fire_timers("p")
    redis, keys = store.connection.redis, store.keys
    assert await redis.zrange(keys.lane("p", "normal+gpu", "default"), 0, -1) == ["p/b", "p/t"]
    assert await redis.exists(keys.turns("p", "batch+gpu")) == 0
    assert (await store.pools.observe("p")).waiting_tasks == 2
    await store.tasks.cancel("p/b")
    assert await redis.zrange(keys.lane("p", "normal+gpu", "default"), 0, -1) == ["p/t"]


async def test_delayed_batch_tasks_wait_their_time_from_when_they_may_begin(store: Store) -> None:
    await seed_pool(store)
    await seed_task(store, lane="batch", delay=LONG_MS, batch=True)
    rows = dict(await store.connection.redis.zrange(store.keys.due("p"), 0, -1, withscores=True))
    assert rows["promote p/t1"] - rows["start p/t1"] == LONG_MS


async def test_batch_tasks_wait_as_long_as_the_pool_says_when_they_are_handed_in(store: Store) -> None:
    await seed_pool(store, batch_max_wait_ms=5000)
    await seed_task(store, lane="batch", batch=True)
    ((_, at),) = await store.connection.redis.zrange(store.keys.due("p"), 0, -1, withscores=True)
    assert 4000 < at - await store.connection.now_ms() <= 5000


async def test_timers_of_what_is_gone_do_nothing(store: Store) -> None:
    await seed_pool(store)
    await store.connection.redis.zadd(
        store.keys.due("p"), {"start p/x": 1, "expire p/x": 1, "promote p/x": 1, "tenant nobody": 1, "odd": 1}
    )
    assert await store.tasks.fire_timers("p") == -1
    assert await store.connection.redis.keys("task:*") == []
