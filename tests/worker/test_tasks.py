"""Tasks: whatever an agent does, the task comes to one outcome and the slot is free again."""

import asyncio

import pytest
from support.wait import wait_until
from support.worker_harness import Master

from agentpool.protocol.zygote import Exit


async def until_free(master: Master, available: str = "4") -> None:
    async def free() -> bool:
        return await master.field("w1", "available") == available

    await wait_until(free, message=master.log)


async def test_wrong_input_never_reaches_the_agent(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork()
    await master.spawn("a", "Adder")
    for target in ({"agent": "a"}, {"type": "Adder"}):
        outcome = await master.run({"a": 1, "b": "two"}, **target)
        assert outcome.status == "invalid_input"
        assert outcome.error is not None
        assert outcome.error.path == "$.b"
        assert "Expected `int`, got `str`" in outcome.error.message


@pytest.mark.parametrize(
    ("input", "type", "words"),
    [
        ("missing", "LookupError", "nothing called missing"),
        ("mute", "Mute", "its message cannot be read: RuntimeError"),
        ("half", "LookupError", "nothing called \\udcff"),
        ("object", "InvalidResult", "run() returned a object, which has no JSON form"),
        ("big", "ResultTooLarge", "the bound is 1048576"),
    ],
)
async def test_a_run_that_fails_says_how(master: Master, input: str, type: str, words: str) -> None:
    await master.prepare("Raising")
    await master.fork()
    outcome = await master.run(input, type="Raising")
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert (outcome.error.type, words in outcome.error.message) == (type, True)
    if type == "LookupError":
        assert "sample_agents.py" in outcome.error.traceback
        assert "agentpool_worker" not in outcome.error.traceback
    await until_free(master)


async def test_a_task_that_takes_too_long_is_cancelled(master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork()
    await master.spawn("a", "Sleeper")
    outcome = await master.run(60, agent="a", timeout_ms=100)
    assert (outcome.status, outcome.error and outcome.error.message) == ("timed_out", "the task took longer than 0.1 s")
    assert (await master.run(0, agent="a")).status == "succeeded"


async def test_the_pools_timeout_holds_where_the_task_has_none(make_master) -> None:
    master = await make_master(task_timeout=0.1)
    await master.prepare("Sleeper")
    await master.fork()
    assert (await master.run(60, type="Sleeper")).status == "timed_out"


@pytest.mark.parametrize("pinned", [True, False])
async def test_an_agent_that_ignores_its_cancellation_is_replaced(master: Master, pinned: bool) -> None:
    await master.prepare("Stubborn")
    await master.fork("w1")
    target = {"agent": "a"} if pinned else {"type": "Stubborn"}
    if pinned:
        await master.spawn("a", "Stubborn")
    before = await master.run("id", **target)
    stuck = await master.submit(None, timeout_ms=100, **target)
    await master.until_running(stuck)
    await master.fork("w2")
    assert (await master.outcome(stuck)).status == "timed_out"
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    after = await master.run("id", **target)
    assert (before.process_id, after.status, after.process_id) == ("w1", "succeeded", "w2")
    assert "agent.ignores_cancellation" in master.log()


async def test_running_and_waiting_tasks_are_cancelled_on_request(master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork()
    await master.spawn("a", "Sleeper")
    for target in ({"agent": "a"}, {"type": "Sleeper"}):
        task = await master.submit(60, **target)
        await master.until_running(task)
        assert await master.store.tasks.cancel(task) == "asked"
        outcome = await master.outcome(task)
        assert (outcome.status, outcome.error and outcome.error.type) == ("cancelled", "TaskCancelled")
    await until_free(master, "3")


async def test_pooled_agents_are_kept_per_tenant_unless_they_may_be_shared(master: Master) -> None:
    await master.prepare("Identity", "Shared")
    await master.fork()

    async def who(type: str, tenant: str) -> bytes:
        return bytes((await master.run(None, type=type, tenant=tenant)).result)

    assert await who("Identity", "t1") == await who("Identity", "t1") != await who("Identity", "t2")
    assert await who("Shared", "t1") == await who("Shared", "t2")


async def test_tasks_by_type_run_together_as_far_as_there_are_slots(master: Master) -> None:
    await master.prepare("Identity")
    await master.fork()
    tasks = [await master.submit(0.2, type="Identity") for _ in range(6)]
    outcomes = [await master.outcome(task) for task in tasks]
    assert len({bytes(outcome.result) for outcome in outcomes}) == 4
    await until_free(master)


async def test_pinned_agents_evict_idle_pooled_ones(make_master) -> None:
    master = await make_master(capacity=2)
    await master.prepare("Identity", "Adder", "Noted", module="noted_module")
    await master.fork()
    for tenant in ("t1", "t2", "t3"):
        await master.run(None, type="Noted", tenant=tenant)
    await wait_until(lambda: master.log().count("noted stop t1") == 1)
    await master.spawn("a", "Noted", tenant="pinned")
    await wait_until(lambda: master.log().count("noted stop t2") == 1)
    await master.spawn("b", "Noted", tenant="pinned")
    await wait_until(lambda: master.log().count("noted stop t3") == 1)
    assert "noted stop pinned" not in master.log()
    task = await master.submit(None, type="Noted")
    await asyncio.sleep(0.2)
    assert (await master.store.tasks.info(task))["status"] == "queued"
    await master.store.agents.terminate("p/a")
    assert (await master.outcome(task)).status == "succeeded"


async def test_a_pooled_agent_that_cannot_start_fails_its_task(master: Master) -> None:
    await master.prepare("Failing")
    await master.fork()
    outcome = await master.run(None, type="Failing")
    assert (outcome.status, outcome.error and outcome.error.type) == ("failed", "AgentFailed")
    assert "no licence found" in str(outcome.error)
    await until_free(master)


async def test_a_task_can_be_cancelled_while_its_agent_starts(master: Master) -> None:
    await master.prepare("Slow", module="slow_module")
    await master.fork()
    task = await master.submit(None, type="Slow")
    await master.until_running(task)
    await master.store.tasks.cancel(task)
    assert (await master.outcome(task)).status == "cancelled"


async def test_a_record_that_cannot_be_read_is_refused_and_not_kept(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork()
    redis, keys = master.store.connection.redis, master.store.keys
    await redis.set(keys.task("p/x"), "task - - Adder default normal 0 -\nno JSON")
    await redis.zadd(keys.lane("p", "normal", "default"), {"p/x": 1})
    await redis.sadd(keys.lanes("p"), "normal")
    await redis.zadd(keys.turns("p", "normal"), {"default": 1})

    async def refused() -> bool:
        return '"invalid_input"' in await redis.get(keys.task("p/x"))

    await wait_until(refused, message=master.log)
    await until_free(master)


async def test_a_type_that_this_worker_does_not_know_fails_the_task(master: Master) -> None:
    await master.prepare("Adder")
    await master.store.connection.redis.hset(master.store.keys.types("p"), "New", '{"name":"New","module":"m"}')
    await master.fork()
    outcome = await master.run(None, type="New")
    assert (outcome.status, outcome.error and outcome.error.type) == ("failed", "UnknownAgentType")


async def test_a_task_survives_redis_being_away_when_it_ends(redis_server, master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork()
    await master.spawn("a", "Sleeper")
    task = await master.submit(0.2, agent="a")
    await master.until_running(task)
    redis_server.stop()
    await asyncio.sleep(0.5)
    redis_server.start()
    assert (await master.outcome(task)).status == "succeeded"
    assert (await master.run(0, agent="a")).status == "succeeded"


# -- tasks that are given without being asked for ---------------------------------------------------------------


async def until_it_listens(master: Master) -> None:
    async def listens() -> bool:
        return await master.field("w1", "listens") == "1" and int(await master.field("w1", "loop_lag_ms") or 0) < 50

    await wait_until(listens, message=master.log)


async def test_a_task_that_is_given_runs_at_once(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork()
    exchanges = []
    for _ in range(5):  # on a busy machine the worker may not seem prompt, and is woken instead
        await until_it_listens(master)
        before = int(await master.field("w1", "claim_number") or 0)
        assert (await master.run({"a": 1, "b": 2}, type="Adder")).status == "succeeded"
        await until_free(master)
        exchanges.append(int(await master.field("w1", "claim_number")) - before)
    assert 1 in exchanges, "the exchange that hands it in"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_task_whose_command_was_lost_is_found(make_master, cancelled: bool) -> None:
    master = await make_master(heartbeat_interval=0.5)
    await master.prepare("Sleeper")
    await master.fork()
    await until_it_listens(master)
    redis, process = master.store.connection.redis, master.store.keys.process("w1")
    async with redis.pipeline(transaction=True) as pipe:
        # As if the command had been published while nobody listened: in one step with the end of the subscription.
        pipe.client_kill_filter(_type="pubsub", skipme=True)
        await pipe.execute()
        task = await master.submit(0.2, type="Sleeper")
    assert (await master.store.tasks.info(task))["process_id"] == "w1", "it was given, and nobody heard"
    assert await redis.hget(process, "listens") == "1", "it was not noticed before"
    if cancelled:
        await master.store.tasks.cancel(task)
    assert (await master.outcome(task)).status == ("cancelled" if cancelled else "succeeded")
    await until_free(master)
