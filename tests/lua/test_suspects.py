"""Tasks that may have killed a worker run alone, and the third time is their last."""

import pytest
from support.seeds import (
    MASTER,
    at_once,
    ended,
    exchange,
    finish,
    ids,
    incarnation,
    listening,
    read_hash,
    read_outcome,
    read_replies,
    seed_host,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.commands import TasksDone
from agentpool.store import Store


async def crash(store: Store, worker: str = "w1", **blame: str) -> None:
    """A worker dies, with what is told of its tasks."""
    words = {f"p/{id}": word for id, word in blame.items()}
    done = await store.workers.reap("p", worker, proof="owner", authority=MASTER, reason="signal 11", blame=words)
    assert done == "done"


async def suspects(store: Store) -> list[str]:
    found: list[str] = await store.connection.redis.zrange(store.keys.suspects("p"), 0, -1)
    return found


async def seed_suspect(store: Store, id: str = "t1", worker: str = "w0", **more: str) -> str:
    """A task that a worker died of; the worker is gone."""
    await seed_worker(store, worker)
    task = await seed_lease(store, id, worker, **more)
    await crash(store, worker, **{id: "suspect"})
    return task


async def test_the_one_to_blame_is_set_apart_and_the_others_go_on(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for id in ("bad", "good", "new"):
        await seed_task(store, id)
    await exchange(store, room=9)
    await crash(store, bad="suspect", good="started")
    assert await suspects(store) == ["p/bad"]
    assert await read_hash(store, store.keys.attempts("p")) == {"p/bad": "0 1 0 0 1", "p/good": "0 1 0 0 0"}
    assert [(await store.tasks.info(f"p/{id}"))["crashes"] for id in ("bad", "good", "new")] == [1, 1, 0]


async def test_who_was_there_twice_is_suspect_too(store: Store) -> None:
    await seed_pool(store)
    for turn in range(2):
        await seed_worker(store, f"w{turn}")
        if turn == 0:
            await seed_task(store)
        await exchange(store, f"w{turn}", room=9)
        assert await suspects(store) == []
        await crash(store, f"w{turn}", t1="started")
    assert await suspects(store) == ["p/t1"]


async def test_a_suspect_runs_alone(store: Store) -> None:
    await seed_pool(store)
    await seed_suspect(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, "m", agent="a1")
    await seed_task(store, "t2")
    assert ids(await exchange(store, room=9, names=["a1"])) == ["p/t1"]
    assert ids(await exchange(store, room=9, names=["a1"])) == [], "nothing beside it"
    assert ids(await exchange(store, room=9, ended=[ended("p/t1")])) == ["p/m", "p/t2"], "mail was not forgotten"


async def test_a_busy_worker_is_cleared_for_a_suspect(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_worker(store, "w2")
    await seed_running_agent(store)
    agents_worker = (await store.agents.get("p/a1")).process_id
    other = {"w1": "w2", "w2": "w1"}[agents_worker]
    for n, worker in enumerate(("w1", "w2")):
        await seed_lease(store, f"busy{n}", worker)
    await seed_suspect(store)
    await seed_task(store, "t2")
    await seed_task(store, "m", agent="a1")
    assert ids(await exchange(store, agents_worker, room=9, names=["a1"])) == [], "it is being cleared"
    assert (await read_hash(store, store.keys.pool("p")))["clearing"] == agents_worker
    assert ids(await exchange(store, other, room=9)) == ["p/t2"], "one is enough"
    busy = "p/busy0" if agents_worker == "w1" else "p/busy1"
    assert ids(await exchange(store, agents_worker, room=9, ended=[ended(busy)])) == ["p/t1"]
    assert "clearing" not in await read_hash(store, store.keys.pool("p"))
    assert ids(await exchange(store, agents_worker, room=9, ended=[ended("p/t1")])) == ["p/m"]


async def test_an_empty_worker_takes_a_suspect_first(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_lease(store, "busy", "w1")
    await seed_suspect(store)
    assert ids(await exchange(store, "w1", room=9)) == []
    await seed_worker(store, "w2")
    await seed_task(store, "t2")
    assert ids(await exchange(store, "w2", room=9)) == ["p/t1"]
    assert ids(await exchange(store, "w1", room=9)) == ["p/t2"], "it need not be cleared any more"


async def test_fifty_workers_race_for_suspects_and_each_runs_one_alone(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w")
    for n in range(3):
        await seed_task(store, f"s{n}")
    await exchange(store, "w", room=3)
    await crash(store, "w", s0="suspect", s1="suspect", s2="suspect")
    for n in range(20):
        await seed_task(store, f"t{n}")
    for n in range(50):
        await seed_worker(store, f"w{n}", capacity=3)
    found = await at_once(50, lambda n: exchange(store, f"w{n}", room=3))
    taken = [ids(each) for each in found]
    assert sorted(tasks for tasks in taken if any("/s" in task for task in tasks)) == [["p/s0"], ["p/s1"], ["p/s2"]]
    assert sum(len(tasks) for tasks in taken) == 23


@pytest.mark.parametrize("how", ["drains", "dies", "has no room"])
async def test_another_is_cleared_when_the_first_cannot_be(store: Store, how: str) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=2)
    await seed_lease(store, "busy1", "w1")
    await seed_suspect(store)
    assert ids(await exchange(store, "w1", room=9)) == []
    if how == "drains":
        await store.workers.drain("p", "w1", reason="test")
    elif how == "dies":
        await crash(store, "w1")
        assert ids(await exchange(store, await seed_worker(store, "w3"), room=9)) == ["p/t1"]
        return
    else:
        await seed_running_agent(store, "a1")
        await finish(store, "p/busy1")
        await seed_running_agent(store, "a2")
        assert ids(await exchange(store, "w1", room=0)) == []
    await seed_worker(store, "w2")
    await seed_task(store, "t2")
    assert ids(await exchange(store, "w2", room=9)) == ["p/t1"]


async def test_suspects_keep_to_labels_and_limits(store: Store) -> None:
    await seed_pool(store)
    await seed_host(store, "h1", ["gpu"])
    await seed_worker(store, "w0", labels="gpu")
    await seed_lease(store, worker="w0", lane="normal+gpu")
    await crash(store, "w0", t1="suspect")
    await seed_worker(store, "w1")
    await seed_task(store, "t2")
    assert ids(await exchange(store, "w1", room=9)) == ["p/t2"]
    await store.tenants.limit("p", "default", {"running": 1})
    await seed_worker(store, "w2", labels="gpu")
    assert ids(await exchange(store, "w2", room=9)) == []
    await finish(store, "p/t2", worker="w1")
    assert ids(await exchange(store, "w2", room=9)) == ["p/t1"]


async def test_a_suspect_that_does_well_is_a_task_like_others(store: Store) -> None:
    await seed_pool(store)
    await seed_suspect(store)
    await seed_worker(store)
    assert ids(await exchange(store, room=9)) == ["p/t1"]
    await finish(store, verdict="retry")
    assert await suspects(store) == []
    await seed_task(store, "t2")
    assert ids(await exchange(store, room=9)) == ["p/t1", "p/t2"], "a failure proves that it does not kill"


async def test_a_suspect_of_a_pinned_agent_waits_in_its_mailbox_until_nothing_else_runs(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_running_agent(store)
    await seed_lease(store, agent="a1")
    await seed_worker(store, "w2")
    await crash(store, "w1", t1="suspect")
    await store.agents.confirm("p", "w2", "a1", await incarnation(store, "a1"))
    await seed_running_agent(store, "a2")
    await seed_lease(store, "busy", "w2")
    await seed_task(store, "t2")
    await seed_task(store, "m2", agent="a2")
    for names in (["a1", "a2"], []):
        assert ids(await exchange(store, "w2", room=9, names=names)) == [], "nothing begins, so that it can"
    assert ids(await exchange(store, "w2", room=9, ended=[ended("p/busy")])) == ["p/t1"], "though it was named before"
    assert ids(await exchange(store, "w2", room=9, ended=[ended("p/t1", "a1")])) == ["p/m2", "p/t2"]


async def test_what_is_passed_over_of_an_agent_that_ends_holds_nothing_up(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_running_agent(store)
    await seed_lease(store, agent="a1")
    await seed_worker(store, "w2")
    await crash(store, "w1", t1="suspect")
    await store.agents.confirm("p", "w2", "a1", await incarnation(store, "a1"))
    await seed_lease(store, "busy", "w2")
    assert ids(await exchange(store, "w2", room=9, names=["a1"])) == []
    await store.agents.terminate("p/a1")
    await seed_task(store, "t2")
    assert ids(await exchange(store, "w2", room=9)) == ["p/t2"]


async def test_a_worker_goes_on_when_its_suspect_ends_by_another_hand(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_running_agent(store)
    await seed_lease(store, agent="a1")
    await seed_worker(store, "w2")
    await crash(store, "w1", t1="suspect")
    await store.agents.confirm("p", "w2", "a1", await incarnation(store, "a1"))
    assert ids(await exchange(store, "w2", names=["a1"])) == ["p/t1"]
    await store.agents.terminate("p/a1")
    await seed_task(store, "t2")
    assert ids(await exchange(store, "w2", room=9, ended=[ended("p/t1", "a1")])) == ["p/t2"]


async def test_the_third_death_alone_is_the_last(store: Store) -> None:
    await seed_pool(store)
    await seed_suspect(store)
    async with listening(store, store.keys.client_channel("c")) as heard:
        for turn in range(1, 4):
            worker = await seed_worker(store, f"w{turn}")
            assert ids(await exchange(store, worker, room=9)) == ["p/t1"]
            assert await read_outcome(store) == ""
            await crash(store, worker, t1="suspect")
        (reply,) = await read_replies(heard)
    assert isinstance(reply, TasksDone)
    found = await store.tasks.read("p/t1")
    assert found
    assert (found.status, found.process_id, found.attempts) == ("worker_lost", "w3", 0)
    assert found.error
    assert (found.error.type, "3 times" in found.error.message) == ("WorkerLost", True)
    letter = await store.letters.get("p/t1")
    assert (letter.kind, letter.crashes, sorted(letter.errors)) == ("poison", 4, [f"crash {n}" for n in range(1, 5)])
    assert await suspects(store) == []
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.attempts("p"), keys.errors("p", "p/t1"), keys.leases("p")) == 0


async def test_a_death_that_proves_nothing_does_not_bury(store: Store) -> None:
    """Without blame (its host lost power) a task goes back as often as it takes."""
    await seed_pool(store)
    await seed_task(store)
    for turn in range(6):
        worker = await seed_worker(store, f"w{turn}")
        assert ids(await exchange(store, worker, room=9)) == ["p/t1"]
        await crash(store, worker)
    assert await read_outcome(store) == ""
    assert await suspects(store) == []
