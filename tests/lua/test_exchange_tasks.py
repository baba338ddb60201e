"""exchange_tasks: a worker hands in what ended, and takes new tasks."""

import msgspec
from support.seeds import (
    LONG_MS,
    at_once,
    ended,
    exchange,
    failure,
    finish,
    header,
    ids,
    listening,
    outcome,
    read_agent,
    read_commands,
    read_free,
    read_hash,
    read_outcome,
    read_replies,
    read_texts,
    read_worker,
    seed_agent,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.commands import TasksDone, Wake
from agentpool.protocol.tasks import TaskEnvelope
from agentpool.store import Store

# -- what ended -------------------------------------------------------------------------------------------------


async def test_outcome_is_recorded_and_told(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    result = outcome(result={"list": [], "big": 2**63 - 1, "text": "ü😀"})
    async with listening(store, store.keys.client_channel("c")) as heard:
        answer = await finish(store, task, result=result)
        assert (answer.tasks, answer.turns, answer.stale, answer.mail) == ((), 0, (), {})
        assert await read_replies(heard) == [TasksDone(tasks=((task, result),))]
    assert await store.tasks.read(task) == result
    assert (await store.tasks.info(task))["result"] == {"list": [], "big": 2**63 - 1, "text": "ü😀"}
    assert await read_free(store) == {"w1": 10}
    assert (await read_worker(store))["task_count"] == "0"
    assert await store.connection.redis.hgetall(store.keys.leases("p")) == {}
    assert await store.connection.redis.smembers(store.keys.tenant_tasks("p", "default")) == set()


async def test_large_outcome_is_to_be_fetched(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    result = outcome(result="x" * 5000)
    async with listening(store, store.keys.client_channel("c")) as heard:
        await finish(store, task, result=result)
        assert await read_replies(heard) == [TasksDone(tasks=((task, None),))]
    assert await store.tasks.read(task) == result


async def test_task_that_nobody_waits_for_is_told_to_nobody(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tasks.submit("p/t1", header(reply_to=""), TaskEnvelope(msgspec.Raw(b"1")))
    await exchange(store, room=1)
    async with listening(store, store.keys.client_channel(""), "-") as heard:
        await finish(store, result=failure())
        assert await read_texts(heard) == []
    assert await read_outcome(store) == "failed"


async def test_pinned_agent_is_idle_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    before = await read_agent(store)
    task = await seed_lease(store, agent="a1")
    await seed_task(store, "t2", agent="a1")
    await seed_task(store, "t3")
    answer = await finish(store, task, "a1")
    assert (answer.turns, answer.mail) == (1, {"a1": 1})
    agent = await read_agent(store)
    assert (agent["status"], agent["task_id"], agent["run_count"]) == ("idle", "", "1")
    assert int(agent["last_used_at"]) >= int(before["last_used_at"])


async def test_an_exchange_repeats(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    task = await seed_lease(store, agent="a1")
    await seed_task(store, "t2", agent="a1")
    await seed_task(store, "t3")
    async with listening(store, store.keys.client_channel("c")) as heard:
        what = [ended(task, "a1", tokens=5)]
        answers = await at_once(50, lambda _: exchange(store, number=5000, room=1, ended=what))
        assert len(await read_replies(heard)) == 1
    assert all(answer == answers[0] for answer in answers)
    assert (ids(answers[0]), answers[0].mail, answers[0].stale) == (["p/t3"], {"a1": 1}, ())
    assert (await read_agent(store))["run_count"] == "1"
    assert sum(map(int, (await read_hash(store, store.keys.tenant_tokens("p", "default"))).values())) == 5


async def test_first_outcome_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    outcomes = [outcome(result=i) for i in range(50)]
    answers = await at_once(50, lambda i: finish(store, task, result=outcomes[i]))
    first = next(i for i in range(50) if not answers[i].stale)
    assert [answer.stale for answer in answers].count((task,)) == 49
    assert await store.tasks.read(task) == outcomes[first]


async def test_an_outcome_that_is_there_already_is_not_stale(store: Store) -> None:
    """An answer may be lost, and what it told be handed in with another number."""
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    assert (await finish(store, task)).stale == ()
    assert (await finish(store, task)).stale == ()
    assert (await finish(store, task, result=failure())).stale == (task,)


async def test_holder_of_no_lease_is_stale(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_worker(store, "w2")
    assert (await finish(store, "p/unknown")).stale == ("p/unknown",)
    await seed_task(store)
    for verdict in ("done", "dead", "retry", "back"):
        assert (await finish(store, verdict=verdict)).stale == ("p/t1",), "not taken"
    await exchange(store, room=1)
    assert (await finish(store, worker="w2")).stale == ("p/t1",)
    assert await read_outcome(store) == ""


async def test_a_task_ends_once_in_one_exchange_too(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    found = await exchange(store, room=5, ended=[ended(task), ended(task, verdict="retry")])
    assert (ids(found), found.stale) == ([], (task,))
    assert await read_outcome(store) == "succeeded"
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.attempts("p"), keys.errors("p", task), keys.lane("p", "normal", "default")) == 0


async def test_many_end_at_once(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=50)
    for i in range(50):
        await seed_task(store, f"t{i:02}", tenant=f"t{i % 3}")
    tasks = ids(await exchange(store, room=50))
    assert len(tasks) == 50
    async with listening(store, store.keys.client_channel("c")) as heard:
        assert (await exchange(store, ended=[ended(task) for task in [*tasks[:49], "p/unknown"]])).stale == (
            "p/unknown",
        )
        (reply,) = await read_replies(heard)
    assert isinstance(reply, TasksDone)
    assert [task for task, _ in reply.tasks] == tasks[:49]
    assert await read_free(store) == {"w1": 49}


async def test_the_audit_gets_one_entry_an_exchange(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for i in range(3):
        await seed_task(store, f"t{i}")
    tasks = ids(await exchange(store, room=3))
    rows = [msgspec.structs.replace(ended(task), audit=f'{{"n":{n}}}'.encode()) for n, task in enumerate(tasks)]
    for _ in range(2):
        await exchange(store, number=9000, ended=rows)
    assert [lines for _, lines in await store.audit.read("p")] == ['{"n":0}\n{"n":1}\n{"n":2}']


# -- tried again ------------------------------------------------------------------------------------------------


async def test_a_retry_without_delay_has_its_old_place(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for i in range(3):
        await seed_task(store, f"t{i}")
    first = await exchange(store, room=1)
    found = await exchange(store, room=1, ended=[ended("p/t0", verdict="retry", result=failure(message="no"))])
    assert (ids(first), ids(found)) == (["p/t0"], ["p/t0"])
    assert [task.attempt for task in (*first.tasks, *found.tasks)] == [1, 2]
    assert await read_outcome(store, "p/t0") == ""
    info = await store.tasks.info("p/t0")
    assert (info["status"], info["attempts"]) == ("leased", 2)
    await finish(store, "p/t0")
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.attempts("p"), keys.errors("p", "p/t0")) == 0, "what went wrong is forgotten"


async def test_a_retry_with_delay_waits_for_its_time(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for agent in ("", "a1"):
        task = await seed_lease(store, f"t{agent}", agent=agent)
        async with listening(store, store.keys.leader_channel("p")) as heard:
            await finish(store, task, agent, verdict="retry", delay_ms=LONG_MS)
            assert "timer" in await read_texts(heard)
        assert (await store.tasks.info(task))["status"] == "delayed"
        assert ids(await exchange(store, room=-1 if agent else 5, names=["a1"])) == []
        assert 0 < await store.tasks.fire_timers("p") <= LONG_MS
        await store.connection.redis.zadd(store.keys.due("p"), {f"start {task}": 1})
        await store.tasks.fire_timers("p")
        assert (await store.tasks.info(task))["status"] == "queued"
    found = await exchange(store, room=5, names=["a1"])
    assert [(task.id, task.attempt) for task in found.tasks] == [("p/ta1", 2), ("p/t", 2)]


async def test_what_is_given_back_is_not_counted(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    found = await exchange(store, room=1, ended=[ended(verdict="back")])
    assert [(task.attempt, task.starts) for task in found.tasks] == [(1, 0)]
    await finish(store, verdict="back", delay_ms=1)
    await store.connection.redis.zadd(store.keys.due("p"), {"start p/t1": 1})
    await store.tasks.fire_timers("p")
    (task,) = (await exchange(store, room=1)).tasks
    assert (task.attempt, task.starts) == (1, 1), "no agent could be started for it once"


async def test_others_are_told_of_what_is_given_back(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_worker(store, "w2")
    await seed_lease(store)
    async with listening(store, store.keys.worker_channel("w2")) as heard:
        await exchange(store, ended=[ended(verdict="back")])
        assert [type(command) for command in await read_commands(heard)] == [Wake]


async def test_a_pinned_agents_task_is_the_first_of_its_mailbox_again(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for i in range(3):
        await seed_task(store, f"t{i}", agent="a1")
    assert ids(await exchange(store, names=["a1"])) == ["p/t0"]
    found = await exchange(store, ended=[ended("p/t0", "a1", "retry")], names=["a1"])
    assert (ids(found), found.mail) == (["p/t0"], {"a1": 2})


async def test_slot_of_a_finished_task_goes_to_an_agent_that_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=1)
    task = await seed_lease(store)
    assert await seed_agent(store) is None
    await finish(store, task)
    assert (await read_agent(store))["process_id"] == "w1"
    assert await read_free(store) == {"w1": 0}


async def test_draining_worker_finishes_what_it_has(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    task = await seed_lease(store)
    await store.workers.drain("p", "w1", reason="test")
    assert await seed_agent(store) is None
    assert (await finish(store, task)).stale == ()
    assert (await read_agent(store))["process_id"] == "", "a draining worker takes no agent"


async def test_settled_tasks_are_told_apart(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store, "t1")
    await seed_task(store, "t2")
    await finish(store)
    assert await store.tasks.settled(["p/t1", "p/t2", "p/unknown"]) == ["p/t1", "p/unknown"]


# -- what it takes ----------------------------------------------------------------------------------------------


async def test_claimed_task_is_leased_and_holds_a_slot(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_task(store, tenant="acme")
    claimed = await exchange(store, room=5)
    assert (ids(claimed), claimed.turns) == (["p/t1"], 0)
    assert (await store.connection.redis.hget(store.keys.leases("p"), "p/t1")).startswith("w1 ")
    assert await store.connection.redis.smembers(store.keys.tenant_tasks("p", "acme")) == {"p/t1"}
    assert await read_free(store) == {"w1": 9}
    assert (await read_worker(store))["task_count"] == "1"
    info = await store.tasks.info("p/t1")
    assert (info["status"], info["process_id"], info["attempts"]) == ("leased", "w1", 1)
    assert await store.connection.redis.exists(store.keys.turns("p", "normal")) == 0


async def test_each_idle_agent_gets_one_task_in_order(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for name in ("a1", "a2"):
        await seed_running_agent(store, name)
    for i in range(3):
        await seed_task(store, f"t{i}", agent="a1")
    assert ids(await exchange(store, names=["a1", "a2", "unknown"])) == ["p/t0"]
    agent = await read_agent(store)
    assert (agent["status"], agent["task_id"]) == ("active", "p/t0")
    assert ids(await exchange(store, names=["a1"])) == [], "one at a time"
    assert await read_free(store) == {"w1": 8}, "its agent has the slot already"
    await finish(store, "p/t0", "a1")
    assert ids(await exchange(store, names=["a1", "a1"])) == ["p/t1"]


async def test_another_workers_agent_gives_nothing(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w2")
    await seed_running_agent(store)
    await seed_worker(store, "w1")
    await seed_task(store, agent="a1")
    assert ids(await exchange(store, names=["a1"])) == []


async def test_claims_by_type_are_within_free_slots_and_limit(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=3)
    await seed_running_agent(store)
    for i in range(5):
        await seed_task(store, f"t{i}")
    assert ids(await exchange(store, room=1)) == ["p/t0"]
    claimed = await exchange(store, room=10)
    assert (ids(claimed), claimed.turns) == (["p/t1"], 1)
    assert ids(await exchange(store, room=10)) == []
    assert await read_free(store) == {"w1": 0}


async def test_claim_repeats_its_batch(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, "t0", agent="a1")
    for i in range(1, 4):
        await seed_task(store, f"t{i}")
    first = await exchange(store, number=7, room=2, names=["a1"])
    assert ids(first) == ["p/t0", "p/t1", "p/t2"]
    assert (await exchange(store, number=7, room=2, names=["a1"])).tasks == first.tasks
    await store.agents.terminate("p/a1")
    assert ids(await exchange(store, number=7, room=2)) == ["p/t1", "p/t2"], "what is unfinished"
    assert ids(await exchange(store, number=8, room=2)) == ["p/t3"]


async def test_an_empty_batch_is_repeated_too(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert ids(await exchange(store, number=1, room=2)) == []
    await seed_task(store)
    assert ids(await exchange(store, number=1, room=2)) == []
    assert ids(await exchange(store, number=2, room=2)) == ["p/t1"]


async def test_a_claim_that_comes_late_takes_nothing(store: Store) -> None:
    """A claim that stuck in a socket while the worker went on would lease tasks that nobody hears of."""
    await seed_pool(store)
    await seed_worker(store)
    await exchange(store, number=10, room=2)
    await seed_task(store)
    assert ids(await exchange(store, number=9, room=2)) == []
    assert ids(await exchange(store, number=10, room=2)) == []
    assert ids(await exchange(store, number=11, room=2)) == ["p/t1"]


async def test_fifty_repeats_of_one_claim_lease_one_batch(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=100)
    for i in range(20):
        await seed_task(store, f"t{i}")
    claims = await at_once(50, lambda _: exchange(store, number=1, room=5))
    assert {tuple(ids(claimed)) for claimed in claims} == {tuple(f"p/t{i}" for i in range(5))}
    assert (await store.pools.observe("p")).running_tasks == 5


async def test_fifty_claims_give_each_task_once(store: Store) -> None:
    await seed_pool(store)
    for w in range(50):
        await seed_worker(store, f"w{w}", capacity=3)
    for i in range(90):
        await seed_task(store, f"t{i}", tenant=f"t{i % 3}")
    claims = await at_once(50, lambda w: exchange(store, f"w{w}", room=5))
    taken = [id for claimed in claims for id in ids(claimed)]
    assert len(taken) == len(set(taken)) == 90
    assert max(len(claimed.tasks) for claimed in claims) == 3
    assert sum((await read_free(store)).values()) == 50 * 3 - 90


async def test_worker_that_was_given_up_claims_nothing(store: Store) -> None:
    await seed_pool(store)
    assert await store.tasks.exchange("p", "w1", 1, room=1) is None
    assert await read_worker(store) == {}


async def test_outcome_outlives_its_queue_for_a_while(store: Store) -> None:
    await seed_pool(store, result_ttl_ms=LONG_MS)
    await seed_worker(store)
    await seed_task(store)
    assert await store.connection.redis.pttl(store.keys.task("p/t1")) == -1
    await exchange(store, room=1)
    await finish(store, "p/t1")
    assert LONG_MS - 10_000 < await store.connection.redis.pttl(store.keys.task("p/t1")) <= LONG_MS
