"""Pinned agents: started, used, failing, idle, unhealthy, ended."""

import asyncio

import pytest
from support.wait import wait_until
from support.worker_harness import Master

from agentpool.protocol.codec import new_id


async def test_an_agent_is_spawned_runs_and_is_terminated(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork()
    await master.spawn("a", "Adder")
    outcome = await master.run({"a": 1, "b": 2}, agent="a")
    assert (outcome.status, bytes(outcome.result), outcome.process_id, outcome.agent_id) == (
        "succeeded", b"3", "w1", "p/a",
    )  # fmt: skip
    assert outcome.tokens == 2
    assert outcome.duration_ms > 0
    record = await master.until_agent("a", "idle")
    assert record.run_count == 1
    await master.store.agents.terminate("p/a")
    await wait_until(lambda: "agent.stopped" in master.log())
    assert await master.field("w1", "available") == "4"


async def test_agents_that_waited_for_a_worker_start_with_it(master: Master) -> None:
    await master.prepare("Adder")
    for number in range(3):
        await master.spawn(f"a{number}", "Adder", status="pending")
    await master.fork()
    for number in range(3):
        await master.until_agent(f"a{number}", "idle")


async def test_tasks_of_one_agent_run_in_order_one_at_a_time(master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter", status="")
    tasks = [await master.submit(1, agent="a") for _ in range(10)]
    outcomes = [await master.outcome(task) for task in tasks]
    assert [int(bytes(outcome.result)) for outcome in outcomes] == list(range(1, 11))


async def test_a_start_that_keeps_failing_backs_off_and_then_fails_the_agent(master: Master) -> None:
    await master.prepare("Failing")
    await master.fork()
    await master.spawn("a", "Failing", status="")
    await master.until_gone("a")
    events = await master.events()
    assert events.count("agent.start_failed") == 2
    assert events.count("agent.failed") == 1
    assert "no licence found" in master.log()
    assert await master.field("w1", "available") == "4"
    assert await master.field("w1", "status") == "ready"


async def test_an_unknown_type_fails_like_a_start_that_fails(master: Master) -> None:
    """As when a pool was given a new class and this worker is of the earlier release."""
    await master.prepare("Adder")
    await master.store.connection.redis.hset(master.store.keys.types("p"), "New", '{"name":"New","module":"m"}')
    await master.fork()
    await master.spawn("a", "New", status="")
    await master.until_gone("a")
    assert 'No agent type named \\"New\\"' in master.log()


async def test_background_work_that_fails_fails_the_agent(master: Master) -> None:
    await master.prepare("Background")
    await master.fork()
    await master.spawn("a", "Background", status="")
    await master.until_gone("a")
    events = await master.events()
    assert "agent.started" in events
    assert (events.count("agent.broke"), events.count("agent.start_failed")) == (2, 0)
    assert "ValueError: the feed closed" in master.log()
    assert '"agent.broke"' in master.log()


async def test_why_a_running_agent_broke_stays_in_its_record(master: Master) -> None:
    await master.prepare("Recovering", module="state_module")
    await master.fork()
    await master.spawn("a", "Recovering", status="")

    async def recovered() -> bool:
        return (await master.events()).count("agent.started") == 2

    await wait_until(recovered, message=master.log)
    record = await master.until_agent("a", "idle")
    assert record.failures == 0
    assert "ValueError: the feed closed" in record.last_error
    assert "agent.start_failed" not in await master.events()


@pytest.mark.parametrize("how", ["now", "task"])
async def test_an_agent_cannot_end_its_worker(master: Master, how: str) -> None:
    await master.prepare("Exiting")
    await master.fork()
    await master.spawn("a", "Exiting")
    outcome = await master.run(how, agent="a")
    if how == "now":
        assert (outcome.status, outcome.error and outcome.error.type) == ("failed", "SystemExit")
    else:
        assert bytes(outcome.result) == b'"survived"'
    assert (await master.run("task", agent="a")).status == "succeeded"


async def test_an_idle_agent_ends_after_its_time_and_a_used_one_later(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork()
    await master.spawn("a", "Adder", max_idle_ms=400)
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(0.25)
    assert (await master.run({"a": 1, "b": 1}, agent="a")).status == "succeeded"
    await master.until_gone("a")
    assert asyncio.get_running_loop().time() - began > 0.6
    assert "agent.terminated" in await master.events()
    await wait_until(lambda: "agent.stopped" in master.log())


async def test_idle_time_is_not_begun_anew_by_a_move(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork("w1")
    asked = asyncio.get_running_loop().time()
    await master.spawn("a", "Adder", max_idle_ms=1000)
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(0.6)
    await master.fork("w2")
    await master.store.workers.drain("p", "w1", reason="test")
    await master.until_agent("a", "idle")
    await master.until_gone("a")
    ended = asyncio.get_running_loop().time()
    assert ended - asked > 0.99
    assert ended - began < 1.5


async def test_healthy_agents_beat_and_sick_ones_are_started_again(master: Master) -> None:
    await master.prepare("Sick")
    await master.fork()
    await master.spawn("a", "Sick", heartbeat_ms=50)

    async def beats() -> bool:
        record = await master.agent("a")
        return record is not None and record.last_heartbeat > record.started_at + 100

    await wait_until(beats, message=master.log)
    await master.run(None, agent="a")
    await master.until_gone("a")
    assert "healthy() said no" in master.log()
    events = await master.events()
    assert (events.count("agent.broke"), events.count("agent.start_failed")) == (2, 0)


async def test_terminating_an_agent_cancels_its_task_and_makes_room_at_once(master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork()
    await master.spawn("a", "Sleeper")
    task = await master.submit(60, agent="a")
    waiting = await master.submit(60, agent="a")
    await master.until_running(task)
    await master.store.agents.terminate("p/a")
    assert (await master.outcome(task)).status == "agent_terminated"
    assert (await master.outcome(waiting)).status == "agent_terminated"
    await master.spawn("a", "Sleeper")
    assert (await master.run(0, agent="a")).status == "succeeded"


async def test_an_agent_whose_start_hangs_fails_in_time(make_master) -> None:
    master = await make_master(agent_start_timeout=0.1)
    await master.prepare("Slow", module="slow_module")
    await master.fork()
    await master.spawn("a", "Slow", status="")
    await master.until_gone("a")
    assert "start() took longer than 0.1 s" in master.log()


async def test_terminating_while_it_starts_ends_it(master: Master) -> None:
    await master.prepare("Slow", module="slow_module")
    await master.fork()
    await master.spawn("a", "Slow", status="placed")
    await wait_until(lambda: "slow.starting" in master.log())
    await master.store.agents.terminate("p/a")
    await wait_until(lambda: "agent.stopped" in master.log())


async def test_a_withdrawn_incarnation_is_replaced_by_the_next(master: Master) -> None:
    """The agent leaves and comes back before the worker looks: two versions later it is another agent."""
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    await master.run(5, agent="a")
    redis, keys = master.store.connection.redis, master.store.keys
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hincrby(keys.agent("p/a"), "incarnation", 1)
        pipe.hset(keys.agent("p/a"), "status", "placed")
        pipe.hincrby(keys.process("w1"), "version", 2)
        await pipe.execute()
    await master.until_agent("a", "idle")
    assert bytes((await master.run(1, agent="a")).result) == b"1"


async def test_agents_run_others_by_type(master: Master) -> None:
    await master.prepare("Asker", "Adder")
    await master.fork()
    await master.spawn("a", "Asker", tenant="acme")
    assert bytes((await master.run(4, agent="a")).result) == b"8"


async def leave_snapshot(master: Master, snapshot: bytes) -> None:
    await master.store.connection.redis.set(master.store.keys.snapshot("p", "a"), snapshot)


async def test_a_snapshot_that_cannot_be_decoded_fails_the_agent_in_the_end(master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await leave_snapshot(master, b"\xff" + b"secret" * 10_000)
    await master.spawn("a", "Counter", status="")
    await master.until_gone("a")
    assert (await master.events()).count("agent.start_failed") == 2
    status, why = await master.store.agents.ended("p/a")
    assert (status, "DecodeError" in why, len(why) <= 2048) == ("failed", True, True)
    assert "secretsecret" not in master.log()


@pytest.mark.parametrize(("state", "words"), [("raise", "LookupError: what was raise"), ("hang", "took longer than")])
async def test_an_agent_that_started_but_cannot_restore_is_stopped_each_time(make_master, state, words) -> None:
    master = await make_master(agent_start_timeout=0.2)
    await master.prepare("Forgetful", module="state_module")
    await master.fork()
    await leave_snapshot(master, f'"{state}"'.encode())
    await master.spawn("a", "Forgetful", status="")
    await master.until_gone("a")
    await wait_until(lambda: master.log().count("forgetful closed") == 3)
    assert master.log().count("forgetful opened") == 3
    assert words in master.log()


async def test_a_command_without_a_version_is_obeyed_only_if_redis_bears_it_out(master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    await master.run(3, agent="a")
    redis, channel = master.store.connection.redis, master.store.keys.worker_channel("w1")
    forged = (
        '"type":"spawn","agent_id":"p/forged","agent_type":"Counter","incarnation":1',
        '"type":"terminate","agent_id":"p/a"',
        '"type":"drain"',
        '"type":"shutdown"',
        '"type":"wake","agent_id":"p/a"',
        '"type":"cancel","task_id":"p/t"',
    )
    for text in forged:
        assert await redis.publish(channel, f'{{{text},"process_id":"w1"}}')
    assert bytes((await master.run(1, agent="a")).result) == b"4"
    assert await master.field("w1", "status") == "ready"
    assert "p/forged" not in master.log()
    assert "agent.stopped" not in master.log()


async def test_a_repeated_spawn_command_starts_nothing_twice(master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    await master.run(3, agent="a")
    redis, channel = master.store.connection.redis, master.store.keys.worker_channel("w1")
    for text in ("nonsense", '{"type":"spawn"}', '{"type":"explode","process_id":"w1"}'):
        await redis.publish(channel, text)
    spawn = (
        f'{{"type":"spawn","process_id":"w1","agent_id":"p/a","agent_type":"Counter","incarnation":1,"x":"{new_id()}"}}'
    )
    await redis.publish(channel, spawn)
    assert bytes((await master.run(1, agent="a")).result) == b"4"
    assert master.log().count("inbox.unreadable") == 3
