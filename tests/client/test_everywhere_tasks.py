"""What a client is promised of tasks beyond their results, the same over Redis and in this process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.everywhere import CAPACITY, POOL, app, has_status, one_pool
from support.wait import wait_until

import agentpool
from agentpool import RetryPolicy
from agentpool.client import Client, Pool, TaskHandle


@pytest.fixture(params=["redis", "local"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with one_pool(request, tmp_path) as client:
        yield client


@pytest.fixture
def pool(client: Client) -> Pool:
    return client.pool(POOL)


# -- keys -------------------------------------------------------------------------------------------------------


async def test_the_same_key_means_the_same_task(pool: Pool) -> None:
    first = await pool.submit("Counter", 5, key="k")
    again = await pool.submit("Counter", 5, key="k")
    assert again.id == first.id
    assert await again.result(10) == 5
    assert await pool.run("Counter", 5, key="k", timeout=10) == 5
    with pytest.raises(agentpool.IdempotencyConflict, match=first.id):
        await pool.submit("Counter", 6, key="k")
    other = await pool.submit("Counter", 6, key="k", tenant="acme")
    assert other.id != first.id
    agent = await pool.spawn("Counter", timeout=10)
    tasks = [await agent.submit(1, key="k") for _ in range(2)]
    assert len({task.id for task in tasks}) == 1
    assert await agent.run(1) == 2
    many = await pool.submit_many("Napper", [0.0, 0.0], key="m")
    assert [task.id for task in await pool.submit_many("Napper", [0.0, 0.0], key="m")] == [task.id for task in many]
    assert (await pool.submit("Napper", 0.0, key="m/1")).id == many[1].id
    slow = await pool.submit("Napper", 60.0, key="slow")
    with pytest.raises(agentpool.TaskTimedOut, match="It goes on"):
        await pool.run("Napper", 60.0, key="slow", timeout=0.05)
    assert await slow.cancel()


async def one_runs(pool: Pool) -> bool:
    return (await pool.stats()).running_tasks == 1


async def test_who_waits_no_more_takes_a_task_from_nobody_who_asked_for_it_with_its_key(pool: Pool) -> None:
    first = asyncio.create_task(pool.run("Napper", 1.0, key="k"))
    await wait_until(lambda: one_runs(pool))
    shared = await pool.submit("Napper", 1.0, key="k")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await shared.result(10) == 1.0


async def test_the_key_of_a_task_that_was_withdrawn_is_free(pool: Pool) -> None:
    for input in 60.0, 61.0:
        first = asyncio.create_task(pool.run("Napper", input, key="k"))
        await wait_until(lambda: one_runs(pool))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert await pool.run("Napper", 0.0, key="k", timeout=10) == 0.0
    assert await (await pool.submit("Napper", 0.0, key="k")).result(10) == 0.0


# -- times ------------------------------------------------------------------------------------------------------


async def test_a_task_may_begin_later(pool: Pool) -> None:
    began = time.monotonic()
    tasks = [await pool.submit("Counter", 1, delay=0.3), await pool.submit("Counter", 1, at=time.time() + 60)]
    agent = await pool.spawn("Counter", timeout=10)
    tasks += [await agent.submit(1, delay=0.3), await agent.submit(1, delay=60), await agent.submit(1, delay=0.6)]
    assert [(await task.info())["status"] for task in tasks] == ["delayed"] * 5
    assert (await pool.stats()).delayed_tasks == 5
    assert await agent.run(5) == 5
    assert (await tasks[0].result(10), await tasks[2].result(10)) == (1, 6)
    assert time.monotonic() - began >= 0.3
    for task in tasks[1], tasks[3]:
        assert await task.cancel()
        with pytest.raises(agentpool.TaskCancelled):
            await task.result(10)
    await agent.terminate()
    with pytest.raises(agentpool.AgentTerminated):
        await tasks[4].result(10)
    assert (await pool.stats()).delayed_tasks == 0


async def test_a_task_may_come_too_late(pool: Pool) -> None:
    busy = await pool.spawn("Sleeper", timeout=10)
    running = await busy.submit(60)
    late = [await busy.submit(0, expires=0.1), await pool.submit("Counter", 1, delay=60, expires=0.1)]
    for task in late:
        with pytest.raises(agentpool.TaskTimedOut, match="expired: no agent took it"):
            await task.result(10)
        assert task.state == "expired"
    in_time = await pool.submit("Sleeper", 0.2, expires=0.1)
    tried = await pool.submit("Flaky", 2, expires=0.1, retry=RetryPolicy(delay=0.2, jitter=False))
    await in_time.result(10)
    assert await tried.result(10) == 2
    assert await running.cancel()


async def test_batch_tasks_wait_for_all_others_but_not_for_ever(pool: Pool) -> None:
    _ = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY - 1)]
    order: list[str] = []

    async def ask(name: str, seconds: float, **options: Any) -> None:
        await pool.run("Napper", seconds, timeout=20, **options)
        order.append(name)

    busy = await pool.submit("Napper", 0.2)
    await wait_until(has_status(busy, "leased"))
    asking = [asyncio.create_task(ask("batch", 0.0, batch=True))]
    await wait_until(lambda: _queued(pool, 1))
    asking += [asyncio.create_task(ask("other", 0.05)) for _ in range(3)]
    await asyncio.gather(*asking)
    assert order == ["other", "other", "other", "batch"]
    order.clear()
    busy = await pool.submit("Napper", 0.5)
    await wait_until(has_status(busy, "leased"))
    promoted = asyncio.create_task(ask("batch", 0.0, batch=True))
    await asyncio.sleep(0.45)
    later = [asyncio.create_task(ask("other", 0.02, priority=9)) for _ in range(2)]
    await asyncio.gather(promoted, *later)
    assert order[0] == "batch", "it had its turn like others after batch_max_wait"


async def _queued(pool: Pool, count: int) -> bool:
    return (await pool.stats()).queued_tasks == count


async def test_urgent_tasks_leave_one_claim_in_eight(pool: Pool) -> None:
    _ = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY - 1)]
    busy = await pool.submit("Napper", 0.3)
    await wait_until(has_status(busy, "leased"))
    order: list[int] = []

    async def ask(priority: int) -> None:
        await pool.run("Napper", 0.006, priority=priority, timeout=20)
        order.append(priority)

    await asyncio.gather(*(ask(priority) for priority in [5] * 2 + [0] * 20))
    first, second = (place for place, priority in enumerate(order) if priority == 5)
    assert first <= 8
    assert second - first == 8


# -- tried again ------------------------------------------------------------------------------------------------


async def test_a_task_that_fails_is_tried_again(pool: Pool) -> None:
    task = await pool.submit("Flaky", 3)
    assert await task.result(10) == 3
    assert (task.state, task.attempts) == ("succeeded", 3)
    waits = await pool.submit("Flaky", 2, retry=RetryPolicy(delay=60))
    await wait_until(has_status(waits, "delayed"))
    assert (await waits.info())["attempts"] == 1
    assert await waits.cancel()
    for options in ({"retry": RetryPolicy(attempts=1)}, {"retry": RetryPolicy(on=(ValueError,))}):
        with pytest.raises(agentpool.TaskFailed, match="attempt 1"):
            await pool.run("Flaky", 2, timeout=10, **options)
    assert await pool.run("Flaky", 2, timeout=10, retry=RetryPolicy(delay=0, on=(ArithmeticError, LookupError))) == 2
    with pytest.raises(agentpool.TaskFailed, match="attempt 2"):
        await pool.run("Decided", 3, timeout=10)
    agent = await pool.spawn("Flaky", timeout=10)
    assert await agent.run(2, timeout=10) == 2


async def test_dead_letters(pool: Pool) -> None:
    dead = await pool.submit("Flaky", 9, tenant="acme")
    agent = await pool.spawn("Flaky", id="a", timeout=10)
    other = await agent.submit(9, retry=RetryPolicy(attempts=1))
    for task in (dead, other):
        with pytest.raises(agentpool.TaskFailed):
            await task.result(10)
    assert (await pool.stats()).dead_tasks == 2
    letter = await pool.dead_letter(dead.id)
    assert (letter.kind, letter.tenant, letter.agent_type, letter.attempts) == ("failed", "acme", "Flaky", 3)
    assert bytes(letter.input) == b"9"
    assert sorted(letter.errors) == ["1", "2", "3"]
    assert all(f"attempt {number}" in bytes(error).decode() for number, error in letter.errors.items())
    assert [one.task_id async for one in pool.dead_letters(tenant="acme")] == [dead.id]
    assert sorted([one.agent_name async for one in pool.dead_letters()]) == ["", "a"]
    assert [one async for one in pool.dead_letters(older_than=60)] == []
    again = await pool.replay(dead.id)
    assert again.id != dead.id
    with pytest.raises(agentpool.TaskFailed):
        await again.result(10)
    with pytest.raises(agentpool.UnknownTask):
        await pool.replay(dead.id)
    await agent.terminate()
    with pytest.raises(agentpool.UnknownAgent):
        await pool.replay(other.id)
    assert await pool.purge([again.id, other.id, dead.id]) == 2
    with pytest.raises(agentpool.UnknownTask):
        await pool.dead_letter(again.id)
    assert (await pool.stats()).dead_tasks == 0
    types = [event.type async for event in pool.events()]
    assert (types.count("task.dead"), types.count("task.replayed")) == (3, 1)


# -- followed ---------------------------------------------------------------------------------------------------


async def test_a_task_can_be_followed(pool: Pool) -> None:
    task = await pool.submit("Flaky", 2, delay=0.1)
    events = [event async for event in task.events()]
    assert [event.type for event in events] == [
        "task.delayed", "task.started", "task.progress", "task.retried", "task.started", "task.progress",
        "task.finished",
    ]  # fmt: skip
    assert [event.data for event in events if event.type == "task.progress"] == [{"attempt": 1}, {"attempt": 2}]
    assert (task.state, task.attempts) == ("succeeded", 2)
    assert [event.type async for event in task.events()][-1] == "task.finished"
    running = await pool.submit("Sleeper", 60)
    await wait_until(has_status(running, "leased"))
    following = [asyncio.create_task(_types(running)) for _ in range(2)]
    await asyncio.sleep(0.1)
    await running.cancel()
    for one in following:
        assert await one == ["task.started", "task.finished"]
    with pytest.raises(agentpool.UnknownTask):
        await _types(pool.task(f"{POOL}/nothing"))


async def _types(task: Any) -> list[str]:
    return [event.type async for event in task.events()]


# -- labels -----------------------------------------------------------------------------------------------------


async def test_labels(pool: Pool) -> None:
    assert await pool.run("Counter", 1, requires=["gpu", "ssd"], timeout=10) == 1
    assert await pool.run(app.Painter, None, timeout=10) == "painted"
    assert await (await pool.spawn(app.Painter, timeout=10)).run(None) == "painted"
    with pytest.raises(agentpool.Unplaceable, match=r'label "tape".*Labels there are: gpu, ssd'):
        await pool.submit("Counter", 1, requires="tape")


# -- tasks that wait for tasks ----------------------------------------------------------------------------------


async def test_tasks_that_wait_lend_their_slots_and_permits(pool: Pool) -> None:
    _ = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY - 2)]
    await pool.limit_tenant("acme", running=5)
    tasks = [await pool.submit("Nested", 3, tenant="acme") for _ in range(5)]
    assert [await task.result(20) for task in tasks] == [3] * 5
    assert await pool.run("Nested", 8, timeout=20) == 8
    with pytest.raises(agentpool.TaskFailed, match="8 deep"):
        await pool.run("Nested", 9, timeout=20)
    agent = await pool.spawn("Nested", tenant="acme", timeout=10)
    await pool.limit_tenant("acme", running=1)
    assert await agent.run(2, timeout=10) == 2
    assert (await pool.tenant("acme")).running == 0


async def test_what_never_ran_had_no_attempt(pool: Pool) -> None:
    async def attempts(task: TaskHandle) -> tuple[str, int]:
        with contextlib.suppress(agentpool.AgentPoolError):
            await task.result(10)
        told = await task.info()
        assert task.attempts == told["attempts"]
        return told["status"], told["attempts"]

    cancelled = await pool.submit("Counter", 1, delay=60)
    await cancelled.cancel()
    assert await attempts(cancelled) == ("cancelled", 0)
    assert await attempts(await pool.submit("Counter", 1, delay=60, expires=0.05)) == ("expired", 0)
    assert await attempts(await pool.submit("Counter", "no number")) == ("invalid_input", 0)
    assert await attempts(await pool.submit("Counter", 1)) == ("succeeded", 1)
    tried = await pool.submit("Flaky", 3, retry=RetryPolicy(delay=60))
    await wait_until(has_status(tried, "delayed"))
    await tried.cancel()
    assert await attempts(tried) == ("cancelled", 1)


async def test_an_agent_that_never_starts_is_no_attempt_of_its_task(pool: Pool) -> None:
    task = await pool.submit("NeverStarts", None)
    with pytest.raises(agentpool.TaskFailed):
        await task.result(20)
    assert task.attempts == 0
    letter = await pool.dead_letter(task.id)
    assert (letter.kind, letter.attempts, letter.starts) == ("failed", 0, 3)
    assert sorted(letter.errors) == ["start 1", "start 2", "start 3"]
    assert b"AgentFailed" in bytes(letter.errors["start 1"])
