"""Acquire and release: who gets an agent when, and what those get who get none."""

import asyncio

import msgspec
import pytest
from pool.sample import ask, check, config, controlled, healthy, hold, steps
from support.wait import wait_until

from agentpool import Agent, Context
from agentpool.errors import InvalidInput, PoolAtCapacity, TaskTimedOut
from agentpool.pool import AcquireTimeout, AgentPool, PoolConfig, StartFailed


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


async def test_the_line_is_bounded_also_while_the_making_of_agents_is_delayed() -> None:
    async with AgentPool(controlled(), config(max_size=2, max_waiting=1, warm_wait=5)) as pool:
        waiters = [ask(pool) for _ in range(4)]
        await steps()
        assert [waiter.done() for waiter in waiters] == [False, False, False, True]
        assert isinstance(waiters[3].exception(), PoolAtCapacity)
        for waiter in waiters[:3]:
            waiter.cancel()


async def test_many_that_gave_up_do_not_disturb_the_order_of_those_who_stay() -> None:
    async with AgentPool(controlled(), config(max_size=1)) as pool:
        held = await pool.acquire()
        waiters = [ask(pool, priority=number % 3) for number in range(600)]
        await steps()
        for number, waiter in enumerate(waiters):
            if number % 100:
                waiter.cancel()
        await steps()
        assert pool.metrics().waiting == 6
        assert sum(len(line) for line in pool._core.waiters._lines.values()) <= 6 + 64 + 6
        order = []
        for _ in range(6):
            pool.release(held)
            await steps()
            number, held = next(
                (n, it.result()) for n, it in enumerate(waiters) if n % 100 == 0 and it.done() and n not in order
            )
            order.append(number)
            check(pool)
        assert order == [0, 300, 100, 400, 200, 500]
        pool.release(held)


async def test_an_agent_may_stay_with_its_lease_unless_it_is_due_elsewhere() -> None:
    async with AgentPool(controlled(), config(max_size=1)) as pool:
        lease = await pool.acquire()
        assert await lease.run("") == 1
        assert lease.may_stay()
        assert await lease.run("") == 2
        waiting = ask(pool)
        await steps()
        assert not lease.may_stay()
        lease.release()
        lease = await waiting
        lease._member.instance.break_("worn out")  # type: ignore[union-attr]
        assert not lease.may_stay()
        lease.release()
