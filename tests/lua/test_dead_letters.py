"""Dead letters: how a task becomes one, and how it is replayed or thrown away."""

import asyncio

import msgspec
import pytest
from support.seeds import (
    at_once,
    exchange,
    failure,
    finish,
    ids,
    read_events,
    read_outcome,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import UnknownAgent, UnknownTask
from agentpool.protocol.tasks import DeadLetter
from agentpool.store import Store


async def bury(store: Store, id: str = "t1", **more: object) -> str:
    task = await seed_lease(store, id, **more)
    await finish(store, task, str(more.get("agent", "")), verdict="dead", result=failure(status="dead"))
    return task


async def letters(store: Store, **more: object) -> list[DeadLetter]:
    return [letter async for letter in store.letters.all("p", **more)]  # type: ignore[arg-type]


async def test_a_letter_tells_the_whole_story(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store, tenant="acme", input={"n": 1})
    await finish(store, verdict="retry", result=failure(message="first"))
    await exchange(store, room=1)
    await finish(store, verdict="dead", result=failure(message="second", status="dead"))
    letter = await store.letters.get("p/t1")
    assert (letter.kind, letter.tenant, letter.agent_type, letter.attempts) == ("failed", "acme", "R", 2)
    assert msgspec.json.decode(letter.input) == {"n": 1}
    told = {number: msgspec.json.decode(error)["error"]["message"] for number, error in letter.errors.items()}
    assert told == {"1": "first", "2": "second"}
    assert b"second" in bytes(letter.outcome)
    assert await read_outcome(store) == "dead"
    assert "task.dead" in await read_events(store)
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.attempts("p"), keys.errors("p", "p/t1")) == 0


async def test_a_task_that_is_not_tried_twice_leaves_nothing_else_behind(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await bury(store)
    assert await store.connection.redis.exists(store.keys.errors("p", "p/t1")) == 0
    assert (await store.letters.get("p/t1")).attempts == 1


async def test_a_letter_of_an_agent_that_never_started_tells_of_its_starts(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await finish(store, verdict="back", delay_ms=1, result=failure(message="first"))
    await asyncio.sleep(0.005)
    await store.tasks.fire_timers("p")
    await exchange(store, room=1)
    await finish(store, verdict="unstarted", result=failure(message="second"))
    letter = await store.letters.get("p/t1")
    assert (letter.kind, letter.attempts, letter.starts, letter.crashes) == ("failed", 0, 2, 0)
    told = {name: msgspec.json.decode(error)["error"]["message"] for name, error in letter.errors.items()}
    assert told == {"start 1": "first", "start 2": "second"}
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.attempts("p"), keys.errors("p", "p/t1")) == 0


async def test_letters_are_bounded_and_the_oldest_go(store: Store) -> None:
    await seed_pool(store, max_dead=3)
    await seed_worker(store)
    for n in range(5):
        await bury(store, f"t{n}")
    assert [letter.task_id for letter in await letters(store)] == ["p/t2", "p/t3", "p/t4"]
    assert len(await store.connection.redis.keys("pool:p:letter:*")) == 3


async def test_letters_are_found_by_what_they_are(store: Store) -> None:
    await seed_pool(store, max_dead=1000)
    await seed_worker(store)
    await seed_running_agent(store, tenant="acme")
    for n in range(120):
        await bury(store, f"t{n:03}")
    await bury(store, "m", agent="a1", tenant="acme")
    found = [letter.task_id for letter in await letters(store)]
    assert len(found) == len(set(found)) == 121
    assert [letter.agent_name for letter in await letters(store, tenant="acme")] == ["a1"]
    assert len(await letters(store, agent_type="R")) == 120
    assert await letters(store, older_than_ms=100_000) == []


async def test_a_replay_is_another_task(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await bury(store, key="k", digest="d", tenant="acme", input=[1])
    answers = await at_once(50, lambda _: store.letters.replay(task, "p/again"))
    assert answers == ["p/again"] * 50
    (found,) = (await exchange(store, room=5)).tasks
    assert (found.id, found.attempt, found.header.tenant, found.header.reply_to) == ("p/again", 1, "acme", "")
    assert found.header.options == f"replays={task}"
    assert found.envelope
    assert msgspec.json.decode(found.envelope.input) == [1]
    assert await read_outcome(store, task) == "dead", "what became of the first stays"
    with pytest.raises(UnknownTask):
        await store.letters.replay(task, "p/another")
    assert await letters(store) == []


async def test_the_timer_of_a_replayed_batch_task_goes_with_it(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await bury(store, lane="batch", batch=True)
    again = await store.letters.replay("p/t1")
    assert await store.connection.ask("ZSCORE", store.keys.due("p"), f"promote {again}")
    assert ids(await exchange(store, room=1)) == [again]
    await finish(store, again)
    assert await store.connection.ask("ZCARD", store.keys.due("p")) == 0


async def test_fifty_replays_make_one_task(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await bury(store)
    answers = await at_once(50, lambda n: store.letters.replay(task, f"p/again{n}"))
    assert sum(isinstance(answer, str) for answer in answers) == 1
    assert (await store.pools.observe("p")).waiting_tasks == 1


async def test_a_replay_for_an_agent(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for id in ("t1", "t2"):
        await bury(store, id, agent="a1")
    again = await store.letters.replay("p/t1")
    assert ids(await exchange(store, names=["a1"])) == [again]
    await store.agents.terminate("p/a1")
    with pytest.raises(UnknownAgent):
        await store.letters.replay("p/t2")
    assert [letter.task_id for letter in await letters(store)] == ["p/t2"], "the letter stays"


async def test_letters_are_thrown_away_once(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    tasks = [await bury(store, f"t{n}") for n in range(3)]
    assert await store.letters.purge([*tasks[:2], "p/unknown"]) == 2
    assert await store.letters.purge(tasks[:2]) == 0
    assert [letter.task_id for letter in await letters(store)] == [tasks[2]]
    with pytest.raises(UnknownTask):
        await store.letters.get(tasks[0])
    with pytest.raises(UnknownTask):
        await store.letters.replay(tasks[0])
    assert await read_outcome(store, tasks[0]) == "dead"


async def test_unknown_letters_are_refused(store: Store) -> None:
    await seed_pool(store)
    await seed_task(store)
    for id in ("p/t1", "p/unknown"):
        with pytest.raises(UnknownTask):
            await store.letters.replay(id)
