"""submit_tasks gives tasks to a worker that listens and has room, where nothing else waits."""

import msgspec
import pytest
from support.seeds import (
    ended,
    exchange,
    finish,
    header,
    ids,
    listening,
    read_commands,
    read_free,
    read_outcome,
    seed_agent,
    seed_pool,
    seed_task,
    seed_worker,
)

from agentpool.doctor import examine
from agentpool.protocol.commands import Command, Run, Wake, decode_command
from agentpool.protocol.tasks import TaskEnvelope
from agentpool.store import Store
from agentpool.store.tasks import SubmitOptions, TaskGroup, claimed_tasks

NULL = TaskEnvelope(msgspec.Raw(b"null"))


async def beat(store: Store, worker: str = "w1", *, lag_ms: int = 0, listens: bool = True, ahead: int = 0) -> None:
    await store.connection.call("beat_worker", "p", worker, lag_ms, "", 0, "", int(listens), ahead)


async def seed_quick(store: Store, *, ms: float = 0.1, count: int = 8, **workers: int) -> None:
    """Seed a pool with workers of so many slots, in which so many of the default tenant's tasks took so long."""
    await seed_pool(store)
    for worker, capacity in workers.items():
        await seed_worker(store, worker, capacity=capacity)
    await store.connection.redis.hset(store.keys.tenant_usage("p", "default"), mapping={"ms": ms, "count": count})


async def holders(store: Store, *tasks: str) -> list[str]:
    """Return on which workers tasks are."""
    return [(await store.tasks.info(f"p/{task}")).get("process_id", "") for task in tasks]


async def submit_heard(store: Store, *tasks: str, worker: str = "w1", **more: object) -> list[Command]:
    """Submit tasks one after the other and return the commands that the worker got."""
    async with listening(store, store.keys.worker_channel(worker)) as heard:
        for task in tasks:
            await seed_task(store, task, **more)
        return await read_commands(heard)


async def test_a_task_goes_to_a_worker_that_listens(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=3)
    await beat(store)
    (command,) = await submit_heard(store, "t1", tenant="acme", input={"path": "a/b \\/ \\\\ \u00e9"})
    assert isinstance(command, Run)
    (task,) = claimed_tasks(command.tasks)
    assert (task.id, task.header.tenant, task.attempt, command.version) == ("p/t1", "acme", 1, 1)
    assert task.envelope
    assert bytes(task.envelope.input) == b'{"path":"a/b \\\\/ \\\\\\\\ \xc3\xa9"}'
    assert (await store.tasks.info("p/t1"))["process_id"] == "w1"
    assert await read_free(store) == {"w1": 2}
    assert ids(await exchange(store, room=3)) == [], "it has it already"
    assert (await finish(store)).stale == ()
    assert await read_outcome(store) == "succeeded"


async def test_those_who_watch_a_pool_do_not_see_what_tasks_are_about(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await beat(store)
    async with listening(store, store.keys.pool_channel("p")) as heard:
        await seed_task(store, input="secret")
        (message,) = [await heard.get_message(timeout=5)]
    assert "secret" not in message["data"]
    assert decode_command(message["data"]) == Run(process_id="w1", version=1)


@pytest.mark.parametrize(
    "why",
    [
        "never beat",
        "does not listen",
        "lags",
        "runs one alone",
        "a suspect waits",
        "a suspect, a tenant wait",
        "large",
    ],
)
async def test_else_it_is_only_woken(store: Store, why: str) -> None:
    await seed_pool(store, max_input_bytes=1_000_000)
    await seed_worker(store)
    redis, keys = store.connection.redis, store.keys
    if why != "never beat":
        await beat(store, lag_ms=101 * (why == "lags"), listens=why != "does not listen")
    if why == "runs one alone":
        await redis.hset(keys.process("w1"), "alone", "p/other")
    if why.startswith("a suspect"):
        await redis.zadd(keys.suspects("p"), {"p/other": 1})
    if why.endswith("a tenant wait"):
        await redis.sadd(keys.held("p"), "other")
    assert await submit_heard(store, "t1", input="x" * 70_000 * (why == "large")) == [Wake(process_id="w1")]
    assert (await store.tasks.info("p/t1"))["status"] == "queued"


async def test_what_waits_longer_goes_first(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_task(store, "t0")
    await beat(store)
    assert await submit_heard(store, "t1") == [Wake(process_id="w1")]
    assert ids(await exchange(store, room=5)) == ["p/t0", "p/t1"]


async def test_more_than_there_is_room_for_wait(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=3)
    await beat(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await store.tasks.submit_many([(f"p/t{n}", NULL) for n in range(4)], header())
        assert await read_commands(heard) == [Wake(process_id="w1")]
        assert ids(await exchange(store, room=3)) == ["p/t0", "p/t1", "p/t2"]


async def test_several_at_once_keep_their_order(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=3)
    await beat(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await store.tasks.submit_many([(f"p/t{n}", NULL) for n in range(3)], header())
        (run,) = await read_commands(heard)
    assert isinstance(run, Run)
    assert [task.id for task in claimed_tasks(run.tasks)] == ["p/t0", "p/t1", "p/t2"]
    assert await read_free(store) == {"w1": 0}
    back = [ended(f"p/t{n}", verdict="back") for n in (2, 0)]
    assert ids(await exchange(store, room=1, ended=back)) == ["p/t0"], "they go back to where they would have waited"


async def test_a_tenant_at_its_limit_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await beat(store)
    await store.tenants.limit("p", "acme", {"running": 1})
    first, *more = await submit_heard(store, "t1", "t2", tenant="acme")
    assert isinstance(first, Run)
    assert more == [Wake(process_id="w1")]
    assert ids(await exchange(store, room=5)) == []
    assert ids(await exchange(store, room=5, ended=[ended("p/t1")])) == ["p/t2"]


async def test_a_tenant_that_used_nothing_of_late_is_forgotten(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await beat(store)
    redis, tags = store.connection.redis, store.keys.tenants("p")
    await redis.zadd(tags, {"gone": -1.0})
    (command,) = await submit_heard(store, "t1", tenant="acme")
    assert isinstance(command, Run)
    for _ in range(8):  # it is looked for now and then
        await exchange(store)
    assert await redis.zrange(tags, 0, -1) == ["acme"]


async def test_a_repeated_submission_gives_nothing_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await beat(store)
    first, *more = await submit_heard(store, "t1", "t1")
    assert isinstance(first, Run)
    assert more == []


async def test_a_worker_that_missed_it_learns_of_it(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await beat(store)
    await seed_task(store)
    view = await store.workers.view("p", "w1")
    assert view is not None
    assert (view.version, view.tasks) == (1, ("p/t1",))
    found = await exchange(store, names=[*view.tasks, "p/unknown"])
    assert ids(found) == ["p/t1"]
    assert ids(await exchange(store, "w1", names=["p/t1"])) == ["p/t1"], "as often as it asks"
    await seed_worker(store, "w2")
    assert ids(await exchange(store, "w2", names=["p/t1"])) == [], "not its own"
    await finish(store)
    assert ids(await exchange(store, names=["p/t1"])) == []


async def test_tasks_of_several_tenants_are_given_with_one_command(store: Store) -> None:
    await seed_pool(store)
    for worker in ("w1", "w2"):
        await seed_worker(store, worker, capacity=3)
        await beat(store, worker)
    groups = [
        TaskGroup(header(tenant=tenant), SubmitOptions(), [(f"p/{id}", NULL) for id in tasks.split()])
        for tenant, tasks in (("a", "a1 a2"), ("b", "b1"), ("c", "c1 c2"), ("d", "d1 d2"))
    ]
    async with listening(store, store.keys.worker_channel("w1"), store.keys.worker_channel("w2")) as heard:
        assert await store.tasks.submit_groups(groups) == [""] * 4
        given = await read_commands(heard)
    assert [sorted(task.id for task in claimed_tasks(command.tasks)) for command in given[:2]] in (
        [["p/a1", "p/a2", "p/b1"], ["p/c1", "p/c2"]],
        [["p/c1", "p/c2"], ["p/a1", "p/a2", "p/b1"]],
    )
    assert [type(command) for command in given[2:]] == [Wake], "of d there is room for one"
    assert sorted((await read_free(store)).values()) == [0, 1]
    assert await examine(store) == []


async def test_quick_tasks_are_given_beyond_the_slots(store: Store) -> None:
    await seed_quick(store, w1=1)
    await beat(store, ahead=2)
    given = await submit_heard(store, "t1", "t2", "t3", "t4")
    assert [type(command) for command in given] == [Run, Run, Run], "of t4 nobody is told who has no free slot"
    assert await holders(store, "t1", "t2", "t3", "t4") == ["w1", "w1", "w1", ""]
    assert await read_free(store) == {"w1": 0}
    assert await examine(store) == []
    assert ids(await exchange(store, room=0, prefetch=2, ended=[ended("p/t1")])) == ["p/t4"]


async def test_who_gives_tasks_back_gets_none_beyond_its_slots_until_its_next_beat(store: Store) -> None:
    await seed_quick(store, w1=1)
    await beat(store, ahead=5)
    await seed_task(store, "t1")
    await seed_task(store, "t2")
    assert await holders(store, "t1", "t2") == ["w1", "w1"]
    await exchange(store, ended=[ended("p/t2", verdict="back")])
    assert ids(await exchange(store, ended=[ended("p/t1")], room=1)) == ["p/t2"]
    await seed_task(store, "t3")
    assert await holders(store, "t3") == [""]
    assert ids(await exchange(store, ended=[ended("p/t2")], room=1)) == ["p/t3"]
    await beat(store, ahead=5)
    await seed_task(store, "t4")
    assert await holders(store, "t4") == ["w1"]


@pytest.mark.parametrize("why", ["they take long", "too little is known", "it wants none", "another waits", "it lags"])
async def test_else_only_free_slots_are_filled(store: Store, why: str) -> None:
    ms, count = 5.0 if why == "they take long" else 0.1, 7 if why == "too little is known" else 8
    await seed_quick(store, w1=1, ms=ms, count=count)
    await beat(store, ahead=0 if why == "it wants none" else 5, lag_ms=101 * (why == "it lags"))
    await seed_task(store, "t1")
    if why == "it lags":
        assert ids(await exchange(store, room=1)) == ["p/t1"], "it was not given to it"
    if why == "another waits":
        await seed_task(store, "t0", tenant="other")
    assert await submit_heard(store, "t2") == []
    assert (await store.tasks.info("p/t2"))["status"] == "queued"


async def test_agents_that_wait_for_a_slot_go_before_tasks_beyond_the_slots(store: Store) -> None:
    await seed_quick(store, w1=1)
    await beat(store, ahead=5)
    await seed_task(store, "t1")
    await seed_agent(store, "a1")
    for task in ("t2", "t3"):
        await seed_task(store, task)
    assert await holders(store, "t1", "t2", "t3") == ["w1", "", ""]
    await store.connection.redis.zadd(store.keys.pending("p"), {"a1": 2 * await store.connection.now_ms()})
    assert ids(await exchange(store, room=0, prefetch=1)) == ["p/t2"], "its time has not come"
    await store.connection.redis.zadd(store.keys.pending("p"), {"a1": 1})
    assert ids(await exchange(store, room=0, prefetch=1)) == []
    assert ids(await exchange(store, ended=[ended("p/t1"), ended("p/t2")], room=1)) == []
    assert (await store.agents.get("p/a1")).process_id == "w1"


async def test_free_slots_come_before_room_beyond_them_and_most_room_before_less(store: Store) -> None:
    await seed_quick(store, w1=1, w2=2)
    await beat(store, "w1", ahead=3)
    await beat(store, "w2", ahead=1)
    names = [f"t{n}" for n in range(8)]
    for name in names:
        await seed_task(store, name)
    *found, one, other, last = await holders(store, *names)
    assert found == ["w2", "w2", "w1", "w1", "w1"]
    assert ({one, other}, last) == ({"w1", "w2"}, "")
    assert await examine(store) == []


async def test_of_a_tenant_no_more_is_given_than_in_a_turn(store: Store) -> None:
    await seed_quick(store, w1=1, ms=4.0)
    await beat(store, ahead=90)
    await store.tasks.submit_many([(f"p/a{n}", NULL) for n in range(13)], header())
    assert (await store.tasks.info("p/a0"))["status"] == "queued", "tasks of 4 ms: twelve in a turn"
    assert len(ids(await exchange(store, room=1, prefetch=90))) == 13
    await exchange(store, ended=[ended(f"p/a{n}") for n in range(13)])
    await store.tasks.submit_many([(f"p/b{n}", NULL) for n in range(12)], header())
    assert (await store.tasks.info("p/b0"))["process_id"] == "w1"
