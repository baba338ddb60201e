"""The breaker before the making of agents: starts that fail, and agents that break at once."""

import asyncio
from typing import Any

import pytest
from pool.sample import Controlled, ask, config, controlled, steps
from support.wait import wait_until

from agentpool import Context
from agentpool.policy.breaker import Breaker
from agentpool.pool import AgentPool, SpawnCircuitOpen, StartFailed


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
        assert pool._core.circuit.breaker == Breaker()


async def test_a_start_that_raised_says_where(caplog: pytest.LogCaptureFixture) -> None:
    async with AgentPool(controlled(start_errors=[OSError("no key")]), config()) as pool:
        with pytest.raises(StartFailed) as caught:
            await pool.acquire()
    assert raised_here("start_errors.pop(0)", caught.value.traceback)
    assert fields(caplog, "pool.start_failed") == {"error": caught.value.reason, "traceback": caught.value.traceback}


async def test_a_start_that_is_not_in_time_raised_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async with AgentPool(controlled(start_gate=asyncio.Event()), config(start_timeout=0.02)) as pool:
        with pytest.raises(StartFailed, match=r"longer than 0\.02 s") as caught:
            await pool.acquire()
    assert caught.value.traceback == ""
    assert fields(caplog, "pool.start_failed") == {"error": caught.value.reason}


async def test_the_start_of_a_successor_that_raised_says_where(caplog: pytest.LogCaptureFixture) -> None:
    agent = controlled()
    async with AgentPool(agent, config()) as pool, pool.acquire() as lease:
        agent.start_errors = [OSError("no key")]
        pool._recycler.mark(pool._core.members[lease.agent_id], "for the test")
        await steps()
    assert raised_here("start_errors.pop(0)", fields(caplog, "pool.start_failed")["traceback"])


async def test_an_agent_that_broke_says_where(caplog: pytest.LogCaptureFixture) -> None:
    async with AgentPool(breaking_at_once(), config(min_size=1)) as pool:
        with pytest.raises(SpawnCircuitOpen, match="gone"):
            await pool.warm()
    found = fields(caplog, "pool.agent_broke")
    assert found["error"] == "background() raised OSError: gone"
    assert raised_here('raise OSError("gone")', found["traceback"])


async def test_an_agent_whose_healthy_raises_says_where(caplog: pytest.LogCaptureFixture) -> None:
    async def healthy(self: Controlled, ctx: Context) -> bool:
        raise OSError("ill")

    async with AgentPool(controlled(healthy=healthy), config()) as pool:
        pool.release(await pool.acquire())
        await pool.acquire()
    assert raised_here('raise OSError("ill")', fields(caplog, "pool.agent_broke")["traceback"])


def fields(caplog: pytest.LogCaptureFixture, event: str) -> dict[str, str]:
    """What the first line of this event carries, besides whose it is."""
    facts = vars(next(record for record in caplog.records if record.message == event))
    assert facts["agent_id"]
    return {name: facts[name] for name in ("error", "traceback") if name in facts}


def raised_here(code: str, traceback: str) -> bool:
    """Tell whether a traceback shows the agent's code, and nothing of ours above it."""
    lines = traceback.splitlines()
    return lines[0] == "Traceback (most recent call last):" and "tests" in lines[1] and code in traceback


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


async def test_warm_says_why_nothing_starts() -> None:
    agent = controlled(start_errors=[OSError("no key")] * 9)
    async with AgentPool(agent, config(min_size=1, breaker_backoff=9, breaker_backoff_max=9)) as pool:
        with pytest.raises(SpawnCircuitOpen, match="no key"):
            await pool.warm()
        with pytest.raises(SpawnCircuitOpen):
            await pool.acquire(timeout=5)


async def test_a_background_that_raises_has_the_agent_replaced() -> None:
    async def background(self: object, ctx: Context) -> None:
        await fails.wait()
        raise OSError

    fails = asyncio.Event()
    async with AgentPool(controlled(background=background), config(min_size=1)) as pool:
        await pool.warm()
        fails.set()
        await wait_until(lambda: pool.metrics().terminated >= 1)


def breaking_at_once(**members: Any) -> type[Controlled]:
    async def background(self: Controlled, ctx: Context) -> None:
        raise OSError("gone")

    return controlled(background=background, **members)


async def test_agents_that_break_at_once_are_made_later_and_later() -> None:
    agent = breaking_at_once()
    changes = config(min_size=1, breaker_failures=2, breaker_backoff=0.05, breaker_backoff_max=10)
    async with AgentPool(agent, changes) as pool:
        await asyncio.sleep(0.6)
        assert 4 <= len(agent.made) <= 7  # with a delay that does not grow it would be 14 to 26
        assert pool.metrics().start_failures == 0
        with pytest.raises(SpawnCircuitOpen, match=r"broke at once.*gone") as caught:
            for _ in range(2):  # the first may come just when another is tried
                async with pool.acquire():
                    await steps()
        assert caught.value.failures >= 4


async def test_an_agent_that_breaks_in_use_is_replaced_only_as_the_circuit_permits() -> None:
    agent = breaking_at_once()
    async with AgentPool(agent, config(breaker_failures=2, breaker_backoff=5, breaker_backoff_max=5)) as pool:
        for _ in range(2):
            async with pool.acquire():
                await steps()
        with pytest.raises(SpawnCircuitOpen, match="gone"):
            await pool.acquire()
        assert len(agent.made) == 2


async def test_an_agent_that_did_a_task_well_and_lived_a_while_has_proved_itself() -> None:
    agent = controlled()
    async with AgentPool(agent, config(breaker_failures=1, breaker_backoff=0.05, breaker_backoff_max=60)) as pool:
        async with pool.acquire() as lease:
            await lease.run(1)
            assert not pool._core.members[lease.agent_id].proved, "it is too young"
            await asyncio.sleep(0.06)
            with pytest.raises(ValueError):
                await lease.run(ValueError())
            assert not pool._core.members[lease.agent_id].proved
            await lease.run(1)
            pool._core.members[lease.agent_id].instance.break_("for the test")
        await pool.acquire(timeout=5)
        assert pool._core.circuit.breaker == Breaker()


async def test_an_agent_that_lived_long_and_did_nothing_has_proved_itself() -> None:
    async with AgentPool(controlled(), config(min_size=1, breaker_failures=1)) as pool:
        await pool.warm()
        await asyncio.sleep(pool.config.breaker_backoff_max)
        pool._core.idle[0].instance.break_("for the test")
        await pool.acquire(timeout=0.5)
        assert pool._core.circuit.breaker == Breaker()


async def test_a_trial_that_is_called_off_leaves_room_for_another() -> None:
    agent = controlled(start_errors=[OSError()])
    async with AgentPool(agent, config(breaker_failures=1)) as pool:
        with pytest.raises(StartFailed):
            await pool.acquire()
        await asyncio.sleep(pool.config.breaker_backoff_max)
        agent.start_gate = asyncio.Event()
        waiter = ask(pool)
        await steps()
        assert pool._core.circuit.breaker.trial
        waiter.cancel()
        await steps()
        assert pool.evict()
        agent.start_gate.set()
        await pool.acquire(timeout=5)


async def test_a_trial_for_a_recycle_is_heard_of_by_those_who_wait() -> None:
    agent = controlled(start_errors=[])
    changes = config(breaker_failures=1, breaker_backoff=0.05, breaker_backoff_max=0.05)
    async with AgentPool(agent, changes) as pool:
        held = await pool.acquire()
        agent.start_errors = [OSError()]
        with pytest.raises(StartFailed):
            await pool.acquire()
        await asyncio.sleep(0.06)
        agent.start_gate = asyncio.Event()
        pool._recycler.mark(pool._core.members[held.agent_id], "for the test")
        assert pool._core.circuit.breaker.trial
        waiter = ask(pool, timeout=5)
        await steps()
        assert pool.metrics().starting == 0
        agent.start_gate.set()
        assert (await waiter).agent_id != held.agent_id
