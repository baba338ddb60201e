"""What a client is promised, the same over Redis with a real worker and in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.everywhere import CAPACITY, POOL, app, has_status, one_pool
from support.wait import wait_until

import agentpool
from agentpool.client import Client, Pool


@pytest.fixture(params=["redis", "local"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with one_pool(request, tmp_path) as client:
        yield client


@pytest.fixture
def pool(client: Client) -> Pool:
    return client.pool(POOL)


# -- pinned agents ----------------------------------------------------------------------------------------------


async def test_an_agent_from_spawn_to_its_end(pool: Pool) -> None:
    agent = await pool.spawn(app.Counter, id="a", tenant="acme", project="web", timeout=10)
    assert agent.id == f"{POOL}/a"
    assert [await agent.run(2) for _ in range(3)] == [2, 4, 6]
    record = await agent.info()
    assert (record.status, record.agent_type, record.tenant, record.project) == ("idle", "Counter", "acme", "web")
    assert (record.run_count, record.task_id, record.incarnation > 0) == (3, "", True)
    assert record.process_id == (await pool.workers())[0].process_id
    assert record.spawned_at <= record.placed_at <= record.started_at <= record.last_used_at
    assert [one.agent_id for one in await pool.agents(tenant="acme")] == [agent.id]
    assert await pool.agents(tenant="other") == []
    await agent.terminate()
    await agent.terminate()
    assert await pool.agents() == []
    with pytest.raises(agentpool.UnknownAgent):
        await agent.info()
    with pytest.raises(agentpool.AgentTerminated, match="terminated on request"):
        await agent.run(1)


async def test_an_agent_of_the_same_name_comes_again(pool: Pool) -> None:
    before = 0
    for _ in range(3):
        agent = await pool.spawn("Counter", id="a", timeout=10)
        assert await agent.run(1) == 1
        before, last = (await agent.info()).incarnation, before
        assert before > last
        await agent.terminate()


async def test_what_an_agent_is_told_of_itself(pool: Pool) -> None:
    agent = await pool.spawn("Teller", id="t", tenant="acme", project="web", timeout=10)
    told = await agent.run(None)
    task_id = told.pop("task_id")
    assert told.pop("fence") == (await agent.info()).incarnation
    assert task_id.startswith(f"{POOL}/")
    assert told == {
        "agent_id": f"{POOL}/t", "pool": POOL, "tenant": "acme", "project": None, "attempt": 1,
    }  # fmt: skip
    handle = await pool.submit("Teller", None, tenant="acme")
    told = await handle.result(10)
    assert (told["tenant"], told["task_id"], told["fence"]) == ("acme", handle.id, 0)
    assert (await handle.info())["tokens"] == 3


async def test_tasks_of_an_agent_run_in_order_and_fail_with_it(pool: Pool) -> None:
    agent = await pool.spawn("Sleeper", timeout=10)
    running = await agent.submit(60)
    waiting = [await agent.submit(0) for _ in range(3)]
    await wait_until(has_status(running, "leased"))
    assert [(await task.info())["status"] for task in waiting] == ["queued"] * 3
    await agent.terminate()
    for task in (running, *waiting):
        with pytest.raises(agentpool.AgentTerminated, match="terminated on request"):
            await task.result(10)


async def test_refusals_change_nothing(client: Client, pool: Pool) -> None:
    await pool.spawn("Counter", id="a", timeout=10)
    with pytest.raises(agentpool.DuplicateAgent):
        await pool.spawn("Counter", id="a")
    with pytest.raises(agentpool.UnknownAgentType, match='Did you mean "Counter"'):
        await pool.spawn("Count")
    with pytest.raises(agentpool.UnknownAgentType):
        await pool.run("Count", 1)
    with pytest.raises(agentpool.UnknownPool, match=POOL):
        await client.pool(f"{POOL}x").run("Counter", 1)
    with pytest.raises(agentpool.UnknownPool):
        await client.pool("other").spawn("Counter")
    with pytest.raises(agentpool.UnknownAgent):
        await pool.agent("b").run(1)
    with pytest.raises(agentpool.UnknownAgent):
        await pool.agent("b").terminate()
    with pytest.raises(agentpool.UnknownTask):
        await pool.task(f"{POOL}/nothing").result(1)
    with pytest.raises(agentpool.InputTooLarge):
        await pool.run("Teller", "x" * 200_000)
    for wrong in ({"path": 5}, {}, [1]):
        with pytest.raises(agentpool.InvalidInput):
            await pool.run(app.Reviewer, wrong)
        with pytest.raises(agentpool.InvalidInput):
            await pool.run("Reviewer", wrong)
    assert [agent.agent_id for agent in await pool.agents()] == [f"{POOL}/a"]
    stats = await pool.stats()
    assert (stats.used_capacity, stats.queued_tasks, stats.running_tasks) == (1, 0, 0)


async def test_agents_that_cannot_start(pool: Pool) -> None:
    with pytest.raises(agentpool.AgentFailed, match="no licence found"):
        await pool.spawn("NeverStarts", timeout=10)
    with pytest.raises(agentpool.TaskFailed, match="no licence found"):
        await pool.run("NeverStarts", None, timeout=10)
    with pytest.raises(agentpool.NoCapacity, match="still running"):
        await pool.spawn("SlowToStart", timeout=0.2)
    assert await pool.agents() == []
    assert (await pool.stats()).used_capacity == 0


async def test_a_full_pool(pool: Pool) -> None:
    agents = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY)]
    with pytest.raises(agentpool.NoCapacity):
        await pool.spawn("Counter", timeout=0.1)
    waiting = [asyncio.create_task(pool.spawn("Counter", id=f"w{number}", timeout=20)) for number in range(2)]
    await wait_until(lambda: _pending(pool, 2))
    with pytest.raises(agentpool.QueueFull):
        await pool.spawn("Counter", timeout=1)
    task = asyncio.create_task(pool.run("Counter", 7, timeout=20))
    stats = await pool.stats()
    assert (stats.total_capacity, stats.used_capacity, stats.utilization) == (CAPACITY, CAPACITY, 1.0)
    assert (stats.agent_count, stats.pending_agents) == (CAPACITY + 2, 2)
    for agent in agents[:2]:
        await agent.terminate()
    assert [(await one).id for one in waiting] == [f"{POOL}/w0", f"{POOL}/w1"]
    assert not task.done()
    await agents[2].terminate()
    assert await task == 7


async def _pending(pool: Pool, count: int) -> bool:
    return (await pool.stats()).pending_agents == count


async def test_an_agent_of_ones_own(pool: Pool) -> None:
    async with pool.acquire(app.Counter) as agent:
        assert await agent.run(1) == 1
        assert (await pool.stats()).used_capacity == 1
    assert (await pool.stats()).used_capacity == 0
    agent = await pool.acquire("Counter")
    await pool.release(agent)
    await pool.release(agent)
    assert await pool.agents() == []


async def test_idle_agents_end_and_used_ones_stay(pool: Pool) -> None:
    await pool.spawn("Counter", id="idle", max_idle_time=1.0, timeout=10)
    used = await pool.spawn("Sleeper", id="used", max_idle_time=1.0, timeout=10)
    assert await used.run(2.0) == used.id
    names = [agent.agent_id for agent in await pool.agents()]
    assert names == [used.id]
    await wait_until(lambda: _none(pool))
    events = [event async for event in pool.events()]
    assert [event.detail for event in events if event.type == "agent.terminated"] == [
        "idle for longer than max_idle_time"
    ] * 2


async def _none(pool: Pool) -> bool:
    return await pool.agents() == []


async def test_an_agent_that_falls_ill_is_started_again(pool: Pool) -> None:
    agent = await pool.spawn("Feverish", heartbeat_interval=0.05, timeout=10)
    await agent.run(None)

    async def again() -> bool:
        types = [event.type async for event in pool.events()]
        return types.count("agent.started") == 2

    await wait_until(again)
    record = await agent.info()
    assert (record.status, record.failures, record.last_error) == ("idle", 0, "healthy() said no")
    await wait_until(lambda: _beats(agent))


async def _beats(agent: Any) -> bool:
    return bool((await agent.info()).last_heartbeat)


# -- tasks ------------------------------------------------------------------------------------------------------


async def test_typed_and_plain_results(pool: Pool) -> None:
    expected = app.Review(text="acme: x", score=2)
    assert await pool.run(app.Reviewer, app.Diff("x", [1, 2]), tenant="acme", timeout=10) == expected
    assert await pool.run(app.Reviewer, {"path": "x", "lines": [1, 2]}, tenant="acme", timeout=10) == expected
    assert await pool.run("Reviewer", app.Diff("x"), timeout=10) == {"text": "default: x", "score": 0}


async def test_the_caller_and_the_agent_share_no_object(pool: Pool) -> None:
    given = {"path": "x", "lines": [1]}
    agent = await pool.spawn("Teller", timeout=10)
    assert await agent.run(given) is not given
    for odd in (float("nan"), object(), {1, "x"}):
        if isinstance(odd, set):
            assert await pool.run("Teller", odd, timeout=10)
        else:
            with pytest.raises(agentpool.InvalidInput):
                await pool.run("Teller", odd)


async def test_what_an_agent_raises(pool: Pool) -> None:
    with pytest.raises(agentpool.TaskFailed) as caught:
        await pool.run(app.Reviewer, app.Diff("broken"), timeout=10)
    assert (caught.value.type, caught.value.message) == ("LookupError", "no such file")
    lines = caught.value.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "everywhere_module.py" in lines[1], "the first frame is the author's"
    assert lines[-1] == "LookupError: no such file"


async def test_a_handle(pool: Pool) -> None:
    handle = await pool.submit(app.Counter, 5)
    assert await handle.result(10) == 5
    assert await handle.result(10) == 5
    info = await handle.info()
    assert (info["status"], info["result"], info["task_id"]) == ("succeeded", 5, handle.id)
    assert await handle.cancel() is False
    assert await pool.task(handle.id, app.Counter).result() == 5


async def test_timeouts_and_cancellations(pool: Pool) -> None:
    with pytest.raises(agentpool.TaskTimedOut):
        await pool.run("Sleeper", 60, timeout=0.1)
    slow = await pool.submit("Sleeper", 60)
    with pytest.raises(agentpool.TaskTimedOut, match="It goes on"):
        await slow.result(0.1)
    assert await slow.cancel()
    with pytest.raises(agentpool.TaskCancelled):
        await slow.result(10)
    running = asyncio.create_task(pool.run("Sleeper", 60))
    await wait_until(lambda: _running(pool, 1))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await wait_until(lambda: _running(pool, 0))
    agent = await pool.spawn("Sleeper", timeout=10)
    busy, waiting = await agent.submit(60), await agent.submit(0)
    assert await waiting.cancel()
    with pytest.raises(agentpool.TaskCancelled, match="before it ran"):
        await waiting.result(10)
    assert await busy.cancel()
    assert await agent.run(0) == agent.id


async def _running(pool: Pool, count: int) -> bool:
    stats = await pool.stats()
    return (stats.running_tasks, stats.queued_tasks) == (count, 0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_cancelling_at_any_moment_leaves_nothing(pool: Pool, turns: int) -> None:
    asked = [
        asyncio.ensure_future(asking)
        for _ in range(3)
        for asking in (pool.spawn("Counter"), pool.run("Sleeper", 60), pool.run("SlowToStart", None))
    ]
    for _ in range(turns):
        await asyncio.sleep(0.0007)
    for each in asked:
        each.cancel()
    kept = [one for one in await asyncio.gather(*asked, return_exceptions=True) if not isinstance(one, BaseException)]

    async def settled() -> bool:
        stats = await pool.stats()
        return (stats.agent_count, stats.used_capacity, stats.queued_tasks, stats.running_tasks) == (
            len(kept), len(kept), 0, 0,
        )  # fmt: skip

    await wait_until(settled)
    assert await pool.run("Counter", 1, timeout=10) == 1


async def test_more_tasks_than_slots(pool: Pool) -> None:
    results = await asyncio.gather(
        *(pool.run("Sleeper", 0.001, tenant=f"t{number % 7}", timeout=30) for number in range(60))
    )
    assert len(results) == 60
    assert (await pool.stats()).used_capacity == 0


async def test_agents_by_type_are_kept_per_tenant_unless_they_may_be_shared(pool: Pool) -> None:
    counts = [await pool.run("Counter", 1, tenant=tenant, timeout=10) for tenant in ("a", "b", "a", "b")]
    assert counts == [1, 1, 2, 2]
    counts = [await pool.run("Shared", 1, tenant=tenant, timeout=10) for tenant in ("a", "b", "a", "b")]
    assert counts == [1, 2, 3, 4]


async def test_urgent_tasks_go_first(pool: Pool) -> None:
    holders = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY - 1)]
    busy = await pool.submit("Sleeper", 0.3)
    await wait_until(has_status(busy, "leased"))
    order: list[int] = []

    async def ask(priority: int) -> None:
        await pool.run("Sleeper", 0, priority=priority, timeout=20)
        order.append(priority)

    asking = []
    for priority in (9, 5, 0):
        asking.append(asyncio.create_task(ask(priority)))
        await wait_until(lambda: _queued(pool, len(asking)))
    await asyncio.gather(*asking)
    assert order == [0, 5, 9]
    assert len(holders) == CAPACITY - 1


async def _queued(pool: Pool, count: int) -> bool:
    return (await pool.stats()).queued_tasks == count


async def test_agents_ask_other_agents(pool: Pool) -> None:
    assert await pool.run("Asker", [1, 2, 3], tenant="acme", timeout=10) == [1, 3, 6]


# -- many tasks -------------------------------------------------------------------------------------------------


async def test_many_tasks_at_once(pool: Pool) -> None:
    assert await pool.submit_many("Counter", []) == []
    handles = await pool.submit_many(app.Reviewer, [app.Diff(str(number)) for number in range(250)], tenant="acme")
    assert len({handle.id for handle in handles}) == 250
    results = [await handle.result(30) for handle in handles]
    assert results == [app.Review(text=f"acme: {number}") for number in range(250)]


async def test_many_tasks_are_taken_all_or_none(pool: Pool) -> None:
    with pytest.raises(agentpool.InvalidInput):
        await pool.submit_many(app.Reviewer, [app.Diff("x")] * 5 + [{"path": 5}])
    with pytest.raises(agentpool.UnknownAgentType):
        await pool.submit_many("Count", [1, 2])
    with pytest.raises(agentpool.InputTooLarge):
        await pool.submit_many("Teller", ["x" * 60_000] * 20 + ["x" * 200_000])
    agents = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY)]
    with pytest.raises(agentpool.QueueFull):
        await pool.submit_many("Counter", range(1050))
    await wait_until(lambda: _running(pool, 0))
    assert len(agents) == CAPACITY


async def test_results_come_in_the_order_of_the_inputs_or_as_they_are_ready(pool: Pool) -> None:
    naps = [0.3, 0.0, 0.1]
    ordered = [result async for result in pool.map("Napper", naps)]
    assert ordered == naps
    soonest = [result async for result in pool.map("Napper", naps, ordered=False)]
    assert soonest == sorted(naps)
    assert [result async for result in pool.map("Napper", [])] == []
    total = [result async for result in pool.map(app.Counter, range(300), max_parallel=7, tenant="m", timeout=30)]
    assert len(total) == 300


async def test_inputs_are_read_as_results_are_taken(pool: Pool) -> None:
    read: list[float] = []

    async def inputs() -> AsyncIterator[float]:
        for _ in range(50):
            read.append(0.0)
            yield 0.0

    taken = 0
    async with contextlib.aclosing(pool.map("Napper", inputs(), max_parallel=3)) as results:
        async for _ in results:
            taken += 1
            assert len(read) <= taken + 3
            if taken == 10:
                break
    await wait_until(lambda: _running(pool, 0))


async def test_a_map_that_fails_or_is_left_cancels_the_rest(pool: Pool) -> None:
    with pytest.raises(agentpool.TaskFailed, match="no such file"):
        async for _ in pool.map(app.Reviewer, [app.Diff("x"), app.Diff("broken"), app.Diff("y")]):
            pass
    async with contextlib.aclosing(pool.map("Napper", [0.0] + [60.0] * 20)) as results:
        assert await anext(results) == 0.0
    await wait_until(lambda: _running(pool, 0))
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(agentpool.InvalidInput, match="max_parallel"):
            pool.map("Napper", [], max_parallel=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 8, 21])
async def test_cancelling_the_submission_of_many_leaves_none(pool: Pool, turns: int) -> None:
    submitting = asyncio.ensure_future(pool.submit_many("Napper", [60.0] * 300))
    for _ in range(turns):
        await asyncio.sleep(0.0007)
    submitting.cancel()
    (kept,) = await asyncio.gather(submitting, return_exceptions=True)
    if isinstance(kept, list):
        for handle in kept:
            await handle.cancel()
    await wait_until(lambda: _running(pool, 0), timeout=10)


# -- the pool itself --------------------------------------------------------------------------------------------


async def test_what_is_known_of_a_pool(client: Client, pool: Pool) -> None:
    await pool.spawn("Counter", id="a", timeout=10)
    (info,) = await client.pools()
    assert (info.pool_name, info.role_type, info.max_input_bytes) == (POOL, "dev", 100_000)
    assert [kind.name for kind in await pool.types()] == sorted(cls.__name__ for cls in app.ALL)
    (stats,) = await client.stats()
    assert (stats.process_count, stats.active_worker_processes) == (1, 1)
    assert (stats.total_capacity, stats.used_capacity, stats.available_capacity) == (CAPACITY, 1, CAPACITY - 1)
    assert (stats.agent_count, stats.utilization) == (1, 0.25)
    (worker,) = await pool.workers()
    assert (worker.status, worker.capacity, worker.agent_count) == ("ready", CAPACITY, 1)
    assert worker.pid > 0


async def test_events_as_they_come(pool: Pool) -> None:
    seen: list[str] = []

    async def follow() -> None:
        async for event in pool.events(follow=True):
            seen.append(event.type)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    agent = await pool.spawn("Counter", timeout=10)
    await agent.terminate()
    expected = ["agent.spawned", "agent.placed", "agent.started", "agent.terminated"]
    await wait_until(lambda: seen == expected, message=lambda: str(seen))
    following.cancel()
    events = [event async for event in pool.events()]
    assert [event.type for event in events][-4:] == expected
    assert {event.agent_id for event in events[-4:]} == {agent.id}
    assert [event.type async for event in pool.events(limit=1)] == ["agent.terminated"]
