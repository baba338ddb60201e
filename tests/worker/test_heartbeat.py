"""What a worker notices of itself: given up, frozen, blocked, deaf; and that lost messages cost a beat at most."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.cutting import cutting
from support.door import OPEN, Door, Harm
from support.wait import wait_until
from support.worker_harness import Master

from agentpool.protocol.zygote import Exit
from agentpool.redis_server import EmbeddedServer


async def snapshot_of(master: Master) -> dict[str, object]:
    """Return everything in Redis."""
    redis = master.store.connection.redis
    return {key: await _read(redis, key) for key in sorted(await redis.keys("*"))}


async def _read(redis, key: str) -> object:
    match await redis.type(key):
        case "hash":
            return await redis.hgetall(key)
        case "zset":
            return await redis.zrange(key, 0, -1, withscores=True)
        case "set":
            return await redis.smembers(key)
        case "stream":
            return await redis.xrange(key)
    return await redis.get(key)


async def test_a_worker_that_was_given_up_ends_and_changes_nothing(master: Master) -> None:
    await master.prepare("Counter", "Sleeper")
    await master.fork()
    await master.spawn("a", "Counter")
    task = await master.submit(60, type="Sleeper")
    await master.until_running(task)
    master.kill("w1", signal.SIGSTOP)
    assert await master.store.workers.reap("p", "w1", proof="owner", authority="m1", reason="test") == "done"
    before = await snapshot_of(master)
    master.kill("w1", signal.SIGCONT)
    assert await master.zygote.exit_of("w1") == Exit.GIVEN_UP
    assert await snapshot_of(master) == before
    assert (await master.store.tasks.info(task))["status"] == "queued"


async def test_without_a_channel_it_is_the_beat_that_tells(master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await master.store.connection.redis.delete(master.store.keys.process("w1"))
    assert await master.zygote.exit_of("w1") == Exit.GIVEN_UP


async def test_a_worker_that_was_frozen_past_its_lease_ends_at_once(make_master) -> None:
    master = await make_master(heartbeat_timeout=0.5)
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    for _ in range(5):
        master.kill("w1", signal.SIGSTOP)
        threading.Event().wait(0.9)
        before = await snapshot_of(master)
        master.kill("w1", signal.SIGCONT)
        with contextlib.suppress(TimeoutError):  # in the midst of a beat it could be Redis that was slow
            assert await master.zygote.exit_of("w1", timeout=2.0) == Exit.FROZEN
            break
    assert master.zygote.exited
    assert await snapshot_of(master) == before


@pytest.fixture
async def door(redis_server: EmbeddedServer) -> AsyncIterator[Door]:
    door = Door(str(redis_server.socket_path))
    await door.open()
    yield door
    await door.close()


async def test_a_worker_that_hears_nothing_does_not_seem_to_live(door: Door, make_master) -> None:
    master = await make_master(heartbeat_timeout=1.0, worker_url=f"redis://127.0.0.1:{door.port}/0")
    await master.prepare("Counter")
    await master.fork()

    async def silent_ms() -> int:
        return await master.store.connection.now_ms() - int(await master.field("w1", "last_beat") or 0)

    async def is_silent() -> bool:
        return await silent_ms() > 2500

    async def beats() -> bool:
        return await silent_ms() < 1000

    await wait_until(beats)
    door.set(Harm(hold_replies=True))
    await wait_until(is_silent, message="its beats arrive, though it hears no answer")
    door.set(OPEN, cut=True)
    await wait_until(beats)


async def test_a_blocked_loop_is_reported_with_the_stack_and_so_is_its_end(master: Master) -> None:
    await master.prepare("Blocker")
    await master.fork()
    await master.spawn("a", "Blocker")
    task = await master.submit(3, agent="a")

    async def reported() -> bool:
        return "worker.blocked" in await master.events()

    await wait_until(reported, message=master.log)
    assert int(await master.field("w1", "loop_lag_ms")) > 1900
    assert "block_the_loop" in master.log()
    event = next(e for e in await master.store.events.read("p") if e.type == "worker.blocked")
    assert "Blocker.run() of p/a" in event.detail
    assert (await master.outcome(task)).status == "succeeded"
    await wait_until(lambda: "worker.unblocked" in master.log())
    assert (await master.events()).count("worker.blocked") == 1


async def test_a_loop_that_stays_blocked_without_a_master_ends_the_worker(make_master) -> None:
    master = await make_master(block_timeout=0.5)
    await master.prepare("Blocker")
    await master.fork()
    await master.spawn("a", "Blocker")
    await master.submit(60, agent="a")
    assert await master.zygote.exit_of("w1") == Exit.BLOCKED
    assert "worker.blocked_too_long" in master.log()


async def test_sigusr2_writes_all_stacks_even_while_the_loop_is_blocked(master: Master) -> None:
    await master.prepare("Blocker")
    await master.fork()
    await master.spawn("a", "Blocker")
    await master.until_running(await master.submit(2, agent="a"))
    await asyncio.sleep(0.2)  # the lease is seen before the agent runs
    master.kill("w1", signal.SIGUSR2)
    dump = Path(master.settings.stack_dir) / "w1.stack"
    await wait_until(lambda: "block_the_loop" in dump.read_text() and "heartbeat" in dump.read_text())


@pytest.mark.parametrize("when", ["before", "after"])
async def test_with_publishing_forbidden_everything_works_within_a_beat(master: Master, when: str) -> None:
    redis = master.store.connection.redis
    await master.prepare("Counter", "Sleeper")
    if when == "after":
        await master.fork("w1")
        await master.spawn("early", "Counter")
    await redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
    try:
        if when == "before":
            await master.fork("w1")
        await master.spawn("a", "Counter")
        assert bytes((await master.run(2, agent="a")).result) == b"2"
        assert (await master.run(0, type="Sleeper")).status == "succeeded"
        task = await master.submit(60, type="Sleeper")
        await master.until_running(task)
        await master.store.tasks.cancel(task)
        assert (await master.outcome(task)).status == "cancelled"
        await master.store.agents.terminate("p/a")
        await wait_until(lambda: "agent.stopped" in master.log())
        await master.store.workers.drain("p", "w1", reason="test")
        assert await master.zygote.exit_of("w1") == Exit.CLEAN
        assert "subscription.forbidden" in master.log()
    finally:
        await redis.execute_command("ACL", "SETUSER", "default", "allchannels")


@pytest.mark.parametrize("loop", ["inbox", "executor", "listener"])
async def test_a_worker_without_one_of_its_loops_ends(master: Master, loop: str) -> None:
    await master.prepare("Sawer")
    await master.fork()
    await master.spawn("a", "Sawer")
    await master.submit(loop, agent="a")
    assert await master.zygote.exit_of("w1") == Exit.DEAF


async def test_beats_go_on_through_an_outage(redis_server, master: Master) -> None:
    await master.prepare("Counter")
    await master.fork()
    await master.spawn("a", "Counter")
    redis_server.stop()
    await wait_until(lambda: "redis.unavailable" in master.log())
    redis_server.start()
    first = await master.field("w1", "last_beat")

    async def beats() -> bool:
        return await master.field("w1", "last_beat") > first

    await wait_until(beats, message=master.log)
    assert bytes((await master.run(2, agent="a")).result) == b"2"
    assert int(await master.field("w1", "memory_bytes")) > 1_000_000


async def test_a_lost_command_costs_a_beat(master: Master) -> None:
    """The subscription's connection is cut, and what happens meanwhile is found out by the next beat or resync."""
    await master.prepare("Counter")
    await master.fork()
    redis = master.store.connection.redis
    for client in await redis.client_list():
        if int(client.get("sub", 0)):
            await redis.client_kill_filter(_id=client["id"])
    await master.spawn("a", "Counter")
    assert bytes((await master.run(2, agent="a")).result) == b"2"


async def test_agents_that_may_not_run_twice_stop_when_redis_is_lost_and_come_back_with_it(
    redis_server, make_master
) -> None:
    master = await make_master(heartbeat_timeout=0.6)
    await master.prepare("Exclusive", "Counter", module="exclusive_module")
    await master.fork()
    await master.spawn("a", "Exclusive")
    await master.spawn("b", "Counter")
    await master.run(2, agent="b")
    task, by_type = await master.submit(60, agent="a"), await master.submit(60, type="Exclusive")
    await master.until_running(task)
    await master.until_running(by_type)
    redis_server.stop()
    await wait_until(lambda: master.log().count("exclusive cancelled") == 2, message=master.log)
    redis_server.start()
    await wait_until(lambda: master.log().count("exclusive begins") == 4, message="their tasks run again")
    for id in (task, by_type):
        await master.store.tasks.cancel(id)
        outcome = await master.outcome(id)
        assert (outcome.status, outcome.attempts) == ("cancelled", 1)
    assert (await master.run(0, agent="a")).status == "succeeded"
    assert bytes((await master.run(1, agent="b")).result) == b"3"


async def test_what_may_not_run_twice_comes_back_with_a_beat_and_with_nothing_else(
    redis_url: str, make_master, tmp_path: Path
) -> None:
    async with cutting(redis_url, tmp_path / "door.sock") as (door, url):
        master = await make_master(heartbeat_timeout=1.0, worker_url=url)
        await master.prepare("Exclusive", "Counter", module="exclusive_module")
        await master.fork()
        await master.spawn("a", "Exclusive")
        task = await master.submit(60, agent="a")
        await master.until_running(task)
        door.swallowed.add("beat_worker")
        await wait_until(lambda: "exclusive cancelled" in master.log(), message=master.log)
        # Commands still come, and it still looks at what it shall hold: no beat is answered, so its lease ends.
        await master.spawn("b", "Exclusive", status="")
        await master.spawn("c", "Counter")
        await asyncio.sleep(0.3)
        assert (await master.until_agent("b", "placed")).process_id == "w1"
        door.swallowed.clear()
        await master.until_agent("b", "idle")
        await wait_until(lambda: master.log().count("exclusive begins") == 2, message="its task runs again")
        await master.store.tasks.cancel(task)
        assert (await master.run(0, agent="a")).status == "succeeded"


async def test_a_late_holder_is_refused_and_told_and_its_task_has_one_outcome(master: Master) -> None:
    await master.prepare("Sleeper")
    await master.fork("w1")
    task = await master.submit(1.0, type="Sleeper")
    await master.until_running(task)
    master.kill("w1", signal.SIGSTOP)
    assert await master.store.workers.reap("p", "w1", proof="owner", authority="m1", reason="test") == "done"
    await master.fork("w2")
    assert (await master.outcome(task)).process_id == "w2"
    before = bytes(await master.store.connection.redis.get(master.store.keys.task(task)), "utf-8")
    late = await master.store.tasks.exchange("p", "w1", 10_000, room=4)
    assert late is None, "whoever was given up gets nothing and hands in nothing"
    master.kill("w1", signal.SIGCONT)
    assert await master.zygote.exit_of("w1") in (Exit.GIVEN_UP, Exit.FROZEN)
    assert "worker.given_up" in master.log()
    assert bytes(await master.store.connection.redis.get(master.store.keys.task(task)), "utf-8") == before
