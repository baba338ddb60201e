"""Acquire and release: who gets an agent when, and what those get who get none."""

import asyncio
import contextlib

import msgspec
import pytest
from pool.sample import check, check_closed, config, controlled, healthy, steps
from support.wait import wait_until

from agentpool import Agent, Context
from agentpool.errors import InvalidInput, PoolAtCapacity, PoolClosed, TaskTimedOut
from agentpool.pool import AcquireTimeout, AgentPool, Lease, PoolConfig, SpawnCircuitOpen, StartFailed


async def hold(pool: AgentPool, count: int) -> list[Lease]:
    return [await pool.acquire() for _ in range(count)]


def ask(pool: AgentPool, timeout: float | None = None, priority: int = 5) -> "asyncio.Task[Lease]":
    async def acquire() -> Lease:
        return await pool.acquire(timeout, priority=priority)

    return asyncio.create_task(acquire())


class Diff(msgspec.Struct):
    lines: int


class Reviewer(Agent):
    async def run(self, ctx: Context, input: Diff) -> int:
        assert isinstance(input, Diff)
        return input.lines + 1


async def test_the_example_of_the_issue() -> None:
    async with (
        AgentPool(Reviewer, PoolConfig.production(max_size=10)) as pool,
        pool.acquire(timeout=30) as agent,
    ):
        assert await agent.run(Diff(1)) == 2
        assert await agent.run({"lines": 2}) == 3
        assert await agent.run(b'{"lines": 3}') == 4
        with pytest.raises(InvalidInput) as caught:
            await agent.run({"lines": "many"})
        assert caught.value.path == "$.lines"
        assert agent.facts().requests == 3


async def test_an_idle_agent_is_taken_at_once_and_the_last_used_first() -> None:
    async with AgentPool(controlled(), config()) as pool:
        first, second = await hold(pool, 2)
        id = second.agent_id
        pool.release(first)
        pool.release(second)
        again = await pool.acquire(timeout=0)
        assert again.agent_id == id
        check(pool)


async def test_whichever_is_ready_first_its_own_or_a_released_one() -> None:
    agent = controlled()
    async with AgentPool(agent, config()) as pool:
        held = await pool.acquire()
        id, agent.start_gate = held.agent_id, asyncio.Event()
        waiter = ask(pool)
        await steps()
        assert pool.metrics().starting == 1
        pool.release(held)
        assert (await waiter).agent_id == id
        agent.start_gate.set()
        await wait_until(lambda: pool.metrics().idle == 1)


async def test_warm_wait_delays_the_making_of_an_agent() -> None:
    async with AgentPool(controlled(), config(warm_wait=0.05)) as pool:
        waiter = ask(pool)
        await steps()
        assert pool.metrics().starting == 0
        await waiter
        assert pool.metrics().spawned == 1


async def test_first_come_first_served_within_a_priority() -> None:
    async with AgentPool(controlled(), config(max_size=1)) as pool:
        held = await pool.acquire()
        order: list[str] = []

        async def user(name: str, priority: int) -> None:
            async with pool.acquire(priority=priority):
                order.append(name)

        tasks = []
        for name, priority in (("a", 5), ("b", 5), ("urgent", 1), ("c", 5)):
            tasks.append(asyncio.create_task(user(name, priority)))
            await steps(2)
        pool.release(held)
        await asyncio.gather(*tasks)
        assert order == ["urgent", "a", "b", "c"]


async def test_a_full_line_refuses_and_a_timeout_withdraws() -> None:
    async with AgentPool(controlled(), config(max_size=1, max_waiting=1)) as pool:
        held = await pool.acquire()
        waiter = ask(pool, timeout=0.05)
        await steps()
        with pytest.raises(PoolAtCapacity):
            await pool.acquire()
        with pytest.raises(AcquireTimeout) as caught:
            await waiter
        assert isinstance(caught.value, TimeoutError)
        metrics = pool.metrics()
        assert (metrics.waiting, metrics.refused, metrics.timed_out) == (0, 1, 1)
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0)
        pool.release(held)
        check(pool)


async def test_a_failed_start_is_told_to_its_request_alone() -> None:
    agent = controlled()
    async with AgentPool(agent, config()) as pool:
        held = await pool.acquire()
        agent.start_errors = [ValueError("no key")]
        with pytest.raises(StartFailed, match="no key"):
            await pool.acquire()
        assert pool.metrics().start_failures == 1
        pool.release(held)
        async with pool.acquire(), pool.acquire():
            assert pool.metrics().active == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_whatever_start_raises_hurts_nobody_else(error: BaseException) -> None:
    async with AgentPool(controlled(start_errors=[error]), config()) as pool:
        with pytest.raises(StartFailed):
            await pool.acquire()
        await pool.acquire()
        check(pool)


async def test_the_circuit_opens_says_why_and_closes_after_a_trial() -> None:
    agent = controlled(start_errors=[OSError("refused")] * 2)
    async with AgentPool(agent, config(breaker_failures=2, breaker_backoff=0.1, breaker_backoff_max=0.1)) as pool:
        for _ in range(2):
            with pytest.raises(StartFailed):
                await pool.acquire()
        with pytest.raises(SpawnCircuitOpen, match="refused") as caught:
            await pool.acquire()
        assert 0 < caught.value.retry_in <= 0.1
        await asyncio.sleep(0.12)
        await pool.acquire()
        assert pool._spawner.breaker.failures == 0


async def test_an_open_circuit_does_not_refuse_while_an_agent_may_come_back() -> None:
    agent = controlled()
    async with AgentPool(agent, config(breaker_failures=1, breaker_backoff=5, breaker_backoff_max=5)) as pool:
        held = await pool.acquire()
        agent.start_errors = [OSError()]
        with pytest.raises(StartFailed):
            await pool.acquire()
        waiter = ask(pool)
        await steps()
        pool.release(held)
        await waiter


async def test_an_unhealthy_agent_is_replaced_and_the_acquire_goes_on() -> None:
    agent = controlled(healthy=healthy)
    async with AgentPool(agent, config(max_size=1)) as pool:
        async with pool.acquire() as lease:
            first = lease.agent_id
        agent.unhealthy.add(first)
        async with pool.acquire(timeout=5) as lease:
            assert lease.agent_id != first
        metrics = pool.metrics()
        assert (metrics.terminated, metrics.total) == (1, 1)
        await wait_until(lambda: len(agent.alive) == 1)


async def test_a_health_check_that_hangs_counts_as_no() -> None:
    async def hang(self: object, ctx: Context) -> bool:
        await asyncio.sleep(3600)
        return True

    async with AgentPool(controlled(healthy=hang), config(max_size=1, health_timeout=0.02)) as pool:
        async with pool.acquire() as lease:
            first = lease.agent_id
        async with pool.acquire(timeout=5) as lease:
            assert lease.agent_id != first
        with pytest.raises(AcquireTimeout):
            await pool.acquire(timeout=0.005)
        check(pool)


async def test_close_ends_those_who_wait_and_whoever_comes() -> None:
    agent = controlled()
    pool = AgentPool(agent, config(max_size=1))
    with pytest.raises(PoolClosed, match="not open"):
        await pool.acquire()
    await pool.open()
    held = await pool.acquire()
    waiter = ask(pool)
    await steps()
    closing = asyncio.create_task(pool.close(drain_timeout=5))
    with pytest.raises(PoolClosed):
        await waiter
    with pytest.raises(PoolClosed):
        await pool.acquire()
    assert not closing.done(), "an agent in use may finish"
    pool.release(held)
    await closing
    await pool.close()
    await check_closed(pool, agent)


async def test_close_cancels_what_does_not_finish_and_names_what_ignores_that() -> None:
    agent = controlled()
    pool = AgentPool(agent, config())
    await pool.open()
    good, bad = await hold(pool, 2)
    waits = asyncio.create_task(good.run(asyncio.Event()))
    await steps()
    stop = asyncio.Event()

    async def deaf(self: object, ctx: Context, input: object) -> None:
        for _ in range(20):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0 if stop.is_set() else 0.3)

    agent.run = deaf  # type: ignore[method-assign]
    ignores = asyncio.create_task(bad.run(None))
    await steps()
    bad_id = bad.agent_id
    report = await pool.close()
    assert report.abandoned == (f"Controlled.run() of {bad_id}",)
    assert len(report.cancelled) == 2
    for task in (waits, ignores):
        with pytest.raises(PoolClosed):
            await task
    stop.set()
    await wait_until(lambda: len(asyncio.all_tasks()) == 1)
    await check_closed(pool, agent)


async def test_close_takes_agents_from_those_who_hold_them_and_do_nothing() -> None:
    agent = controlled()
    pool = AgentPool(agent, config())
    await pool.open()
    lease = await pool.acquire()
    await pool.close()
    with pytest.raises(PoolClosed):
        await lease.run(1)
    pool.release(lease)
    await check_closed(pool, agent)


async def test_a_lease_is_good_once() -> None:
    async with AgentPool(controlled(), config()) as pool:
        lease = await pool.acquire()
        pool.release(lease)
        pool.release(lease)
        with pytest.raises(RuntimeError, match="holds no agent"):
            await lease.run(1)
        with pytest.raises(RuntimeError, match="once"):
            await lease
        check(pool)


async def test_a_run_that_outlives_its_lease_is_cancelled_before_the_next_has_the_agent() -> None:
    async with AgentPool(controlled(), config(max_size=1)) as pool:
        lease = await pool.acquire()
        task = asyncio.create_task(lease.run(asyncio.Event()))
        await steps()
        with pytest.raises(RuntimeError, match="one task at a time"):
            await lease.run(1)
        pool.release(lease)
        assert pool.metrics().idle == 0
        async with pool.acquire() as again:
            assert again.facts().errors == 1, "the first run has ended"
            assert await again.run(1) == 2
        await asyncio.gather(task, return_exceptions=True)


async def test_errors_and_timeouts_of_a_run() -> None:
    async with AgentPool(controlled(), config()) as pool, pool.acquire() as agent:
        with pytest.raises(ZeroDivisionError):
            await agent.run(ZeroDivisionError())
        with pytest.raises(TaskTimedOut):
            await agent.run(asyncio.Event(), timeout=0.01)
        facts, metrics = agent.facts(), pool.metrics()
        assert (facts.requests, facts.errors, metrics.requests, metrics.errors) == (2, 2, 2, 2)
        assert metrics.execution.count == 2
        assert metrics.execution.max_s >= 0.01


async def test_another_loop_is_refused() -> None:
    async with AgentPool(controlled(), config()) as pool:

        async def elsewhere() -> None:
            await pool.acquire()

        with pytest.raises(RuntimeError, match="SyncPool"):
            await asyncio.to_thread(asyncio.run, elsewhere())


# -- cancellation at every step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(14))
@pytest.mark.parametrize("kind", ["cold", "released", "checked", "warm"])
async def test_a_cancellation_after_any_number_of_steps_leaks_nothing(count: int, kind: str) -> None:
    agent = controlled(**({"healthy": healthy} if kind == "checked" else {}))
    pool = AgentPool(agent, config(max_size=1))
    await pool.open()

    async def user() -> None:
        async with pool.acquire() as lease:
            await lease.run(1)
            await asyncio.sleep(0)

    held = None
    if kind != "cold":
        held = await pool.acquire()
        if kind != "released":
            pool.release(held)
    task = asyncio.create_task(user())
    for step in range(count):
        if step == 2 and held is not None:
            pool.release(held)
        await asyncio.sleep(0)
        check(pool)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if held is not None:
        pool.release(held)
    check(pool)
    async with pool.acquire(timeout=5) as lease:
        await lease.run(1)
    await wait_until(lambda: pool.metrics().idle == 1)
    await pool.close()
    await check_closed(pool, agent)


@pytest.mark.parametrize("count", range(8))
async def test_a_release_and_a_cancellation_in_the_same_step(count: int) -> None:
    async with AgentPool(controlled(), config(max_size=1)) as pool:
        held = await pool.acquire()
        first, second = ask(pool), ask(pool)
        await steps(count)
        pool.release(held)
        first.cancel()
        await steps()
        check(pool)
        assert first.cancelled()
        assert (await second).agent_id
        check(pool)


@pytest.mark.parametrize("count", range(12))
async def test_closing_after_any_number_of_steps_leaks_nothing(count: int) -> None:
    agent = controlled(healthy=healthy)
    pool = AgentPool(agent, config(min_size=1, max_size=2))
    await pool.open()

    async def user() -> None:
        async with pool.acquire() as lease:
            await lease.run(1)

    users = [asyncio.create_task(user()) for _ in range(4)]
    await steps(count)
    await pool.close(drain_timeout=1)
    results = await asyncio.gather(*users, return_exceptions=True)
    assert all(result is None or isinstance(result, PoolClosed) for result in results), results
    await check_closed(pool, agent)
