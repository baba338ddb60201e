"""Leaving: what runs finishes, agents move with their state, nothing stays behind."""

import asyncio
import signal
import time

import msgspec
from support.wait import wait_until
from support.worker_harness import Master

from agentpool.protocol.codec import new_id
from agentpool.protocol.tasks import TaskEnvelope, TaskHeader
from agentpool.protocol.zygote import Exit


async def test_agents_move_to_another_worker_and_find_their_state(master: Master) -> None:
    await master.prepare("Counter")
    await master.fork("w1")
    for name in ("a", "b"):
        await master.spawn(name, "Counter")
        await master.run(7, agent=name)
    await master.fork("w2")
    before = {name: (await master.until_agent(name, "idle")).incarnation for name in ("a", "b")}
    await master.store.workers.drain("p", "w1", reason="test")
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    for name in ("a", "b"):
        record = await master.until_agent(name, "idle")
        assert record.process_id == "w2"
        assert record.incarnation > before[name]
        assert bytes((await master.run(1, agent=name)).result) == b"8"
    assert [worker.process_id for worker in await master.store.workers.all("p")] == ["w2"]


async def test_without_another_worker_they_wait_for_one(master: Master) -> None:
    await master.prepare("Counter", "Failing", "Slow", module="mixed_module")
    await master.fork("w1")
    await master.spawn("counts", "Counter")
    await master.spawn("starts", "Slow", status="placed")
    await master.store.workers.drain("p", "w1", reason="test")
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    for name in ("counts", "starts"):
        await master.until_agent(name, "pending")
    assert (await master.events())[-1] == "worker.stopped"


async def test_a_busy_agent_moves_after_its_task(master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork("w1")
    await master.spawn("a", "Sleeper")
    await master.spawn("idle", "Sleeper")
    task = await master.submit(0.5, agent="a")
    later = await master.submit(0, agent="a")
    by_type = await master.submit(0.5, type="Sleeper")
    await master.until_running(task)
    await master.until_running(by_type)
    await master.fork("w2")
    before = (await master.until_agent("idle", "idle")).incarnation
    await master.store.workers.drain("p", "w1", reason="test")
    record = await master.until_agent("idle", "idle")
    assert await master.field("w1", "status") == "draining"
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    for done in (task, by_type):
        outcome = await master.outcome(done)
        assert (outcome.status, outcome.process_id) == ("succeeded", "w1")
    assert (await master.outcome(later)).process_id == "w2"
    assert record.incarnation > before or (await master.agent("idle")).incarnation > before


async def test_at_the_deadline_tasks_go_back_to_where_they_waited(make_master) -> None:
    master = await make_master(drain_timeout=0.3)
    await master.prepare("Sleeper")
    await master.fork()
    await master.spawn("a", "Sleeper")
    tasks = [await master.submit(60, agent="a"), await master.submit(60, type="Sleeper")]
    for task in tasks:
        await master.until_running(task)
    await master.store.workers.drain("p", "w1", reason="test")
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    for task in tasks:
        info = await master.store.tasks.info(task)
        assert (info["status"], info["attempts"], info["crashes"]) == ("queued", 0, 0)
    await master.until_agent("a", "pending")


async def test_sigterm_drains_and_a_second_one_hurries(master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork()
    await master.spawn("a", "Sleeper")
    task = await master.submit(60, agent="a")
    await master.until_running(task)
    master.kill("w1", signal.SIGTERM)
    await master.until_status("w1", "draining")
    master.kill("w1", signal.SIGTERM)
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    assert (await master.store.tasks.info(task))["status"] == "queued"
    assert not list(master.log_path.parent.glob("*.stack"))


async def test_a_drain_outlasts_a_short_outage_of_redis(redis_server, master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    await master.run(3, agent="a")
    redis_server.stop()
    master.kill("w1", signal.SIGTERM)
    await asyncio.sleep(0.3)
    redis_server.start()
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    await master.until_agent("a", "pending")
    await master.fork("w2")
    assert bytes((await master.run(1, agent="a")).result) == b"4"


async def test_a_drain_without_redis_ends_all_the_same(redis_server, make_master) -> None:
    master = await make_master(drain_timeout=0.2, agent_stop_timeout=0.1, command_timeout=0.2)
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    redis_server.stop()
    master.kill("w1", signal.SIGTERM)
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    redis_server.start()
    assert await master.field("w1", "status") == "ready"
    assert "worker.drain_failed" in master.log()


async def test_what_fails_at_the_end_does_not_hold_the_worker(master: Master) -> None:
    await master.prepare("Clumsy", module="mixed_module")
    await master.fork()
    await master.spawn("a", "Clumsy")
    master.kill("w1", signal.SIGTERM)
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    await wait_until(lambda: "agent.snapshot_failed" in master.log() and "agent.stop_failed" in master.log())
    await master.until_agent("a", "pending")


async def test_a_snapshot_above_the_bound_is_not_kept(make_master) -> None:
    master = await make_master(max_result_bytes=1000)
    await master.prepare("Hoarder", module="state_module")
    await master.fork("w1")
    for name, size in (("fits", 998), ("big", 999)):
        await master.spawn(name, "Hoarder")
        await master.run(size, agent=name)
    await master.store.workers.drain("p", "w1", reason="test")
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    assert len(await master.store.agents.snapshot("p", "fits")) == 1000
    assert await master.store.agents.snapshot("p", "big") == ""
    assert master.log().count("agent.snapshot_failed") == 1
    assert "snapshot() returned 1001 bytes; the bound is 1000" in master.log()


async def _all_leased(master: Master, tasks: list[str]) -> bool:
    return all([(await master.store.tasks.info(task))["status"] == "leased" for task in tasks])


def envelope(input: float) -> TaskEnvelope:
    return TaskEnvelope(msgspec.Raw(msgspec.json.encode(input)))


async def _holding_short_ones(make_master) -> tuple[Master, str, list[str]]:
    """One slot, on which a slow task runs, and short tasks that the worker took beyond it."""
    master: Master = await make_master(capacity=1)
    await master.prepare("Sleeper")
    await master.fork("w1")
    for task in [await master.submit(0, type="Sleeper") for _ in range(60)]:
        await master.outcome(task)
    tasks = [(f"p/{new_id()}", envelope(2.0)), *((f"p/{new_id()}", envelope(0.0)) for _ in range(10))]
    await master.store.tasks.submit_many(tasks, TaskHeader("", "", "Sleeper", "default"))
    slow, *short = [id for id, _ in tasks]
    await wait_until(lambda: _all_leased(master, [slow, *short]), message=master.log)
    return master, slow, short


async def test_a_slow_task_holds_no_others_hostage(make_master) -> None:
    master, slow, short = await _holding_short_ones(make_master)
    began = time.monotonic()
    await master.fork("w2")
    outcomes = [await master.outcome(task) for task in short]
    assert {outcome.process_id for outcome in outcomes} == {"w2"}
    assert time.monotonic() - began < 1
    assert (await master.store.tasks.info(slow))["status"] == "leased"
    assert (await master.outcome(slow)).process_id == "w1"


async def test_a_drain_gives_back_what_was_taken_and_has_not_begun(make_master) -> None:
    master, slow, short = await _holding_short_ones(make_master)
    await master.store.workers.drain("p", "w1", reason="test")
    await wait_until(lambda: _none_leased(master, short), timeout=1, message=master.log)
    assert await master.zygote.exit_of("w1") == Exit.CLEAN
    assert (await master.outcome(slow)).process_id == "w1"
    await master.fork("w2")
    for task in short:
        outcome = await master.outcome(task)
        assert (outcome.process_id, outcome.attempts) == ("w2", 1)


async def _none_leased(master: Master, tasks: list[str]) -> bool:
    return not any([(await master.store.tasks.info(task))["status"] == "leased" for task in tasks])
