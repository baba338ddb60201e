"""What a client is promised of tenants: limits and shares, the same over Redis and in this process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.everywhere import CAPACITY, POOL, has_status, one_pool
from support.wait import wait_until

import agentpool
from agentpool.client import Client, Pool, TaskHandle


@pytest.fixture(params=["redis", "local"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with one_pool(request, tmp_path) as client:
        yield client


@pytest.fixture
def pool(client: Client) -> Pool:
    return client.pool(POOL)


async def test_limits_as_configured_and_as_set_live(pool: Pool) -> None:
    limits = (await pool.tenant("acme")).limits
    assert (limits.agents, limits.running, limits.tokens_per_minute, limits.queued) == (10, 5, 100_000, 1000)
    limits = (await pool.tenant("default")).limits
    assert (limits.agents, limits.running, limits.tokens_per_minute, limits.queued) == (0, 0, 0, 1000)
    usage = await pool.limit_tenant("acme", running=2, weight=2.5)
    assert (usage.limits.running, usage.limits.weight, usage.limits.agents) == (2, 2.5, 10)
    assert usage.set_live == "running=2 weight=2.5"
    usage = await pool.limit_tenant("acme", running=None)
    assert (usage.limits.running, usage.set_live) == (5, "weight=2.5")
    with pytest.raises(agentpool.InvalidInput, match='Did you mean "running"'):
        await pool.limit_tenant("acme", runing=1)
    await pool.spawn("Counter", tenant="other", timeout=10)
    assert [usage.tenant for usage in await pool.tenants()] == ["acme", "other"]
    assert [event.detail async for event in pool.events() if event.type == "tenant.limited"][-1] == "acme weight=2.5"


async def test_pinned_agents_of_a_tenant(pool: Pool) -> None:
    await pool.limit_tenant("acme", agents=1)
    agent = await pool.spawn("Counter", tenant="acme", timeout=10)
    with pytest.raises(agentpool.AgentLimitError) as caught:
        await pool.spawn("Counter", tenant="acme", timeout=10)
    assert (caught.value.code, caught.value.limit) == ("TOTAL_LIMIT", 1)
    assert (await pool.tenant("acme")).agents == 1
    await agent.terminate()
    await pool.spawn("Counter", tenant="acme", timeout=10)


async def test_tasks_at_once(pool: Pool) -> None:
    await pool.limit_tenant("acme", running=2)
    agent = await pool.spawn("Sleeper", tenant="acme", timeout=10)
    first = [await agent.submit(60), await pool.submit("Sleeper", 60, tenant="acme")]
    for task in first:
        await wait_until(has_status(task, "leased"))
    waits = await pool.submit("Sleeper", 0, tenant="acme")
    with pytest.raises(agentpool.AgentLimitError, match="CONCURRENT_LIMIT") as caught:
        await pool.submit("Sleeper", 0, tenant="acme", when_limited="reject")
    assert caught.value.retry_after
    assert await pool.run("Sleeper", 0, tenant="other", timeout=10)
    usage = await pool.tenant("acme")
    assert (usage.running, usage.queued, usage.held) == (2, 1, True)
    await first[0].cancel()
    await waits.result(10)
    again = [await pool.submit("Sleeper", 0, tenant="acme") for _ in range(2)]
    assert [await task.result(10) for task in again]
    await wait_until(has_status(await agent.submit(60), "leased"))
    more = await pool.submit("Counter", 1, tenant="acme")
    await pool.limit_tenant("acme", running=9)
    assert await more.result(10) == 1
    await first[1].cancel()


async def test_at_a_limit_mail_and_tasks_by_type_take_turns(pool: Pool) -> None:
    await pool.limit_tenant("acme", running=1)
    agent = await pool.spawn("Sleeper", tenant="acme", timeout=10)
    ended: list[str] = []

    async def note_end(task: TaskHandle, what: str) -> None:
        await task.result(30)
        ended.append(what)

    async def enough(*tasks: tuple[TaskHandle, str]) -> str:
        ended.clear()
        await asyncio.gather(*(note_end(task, what) for task, what in tasks))
        return "".join(ended)

    many = [(task, "t") for task in await pool.submit_many("Sleeper", [0.02] * 30, tenant="acme")]
    mail = [(await agent.submit(0), "m") for _ in range(2)]
    assert (await enough(*many, *mail)).rindex("m") < 20, "mail does not wait for all of these"
    many = [(await agent.submit(0.02), "m") for _ in range(30)]
    by_type = [(task, "t") for task in await pool.submit_many("Sleeper", [0] * 2, tenant="acme")]
    assert (await enough(*many, *by_type)).rindex("t") < 20, "nor the other way round"


async def test_an_execution_for_a_tenant_is_refused_at_its_total(pool: Pool) -> None:
    await pool.limit_tenant("acme", agents=2, running=0)
    tasks = [await pool.schedule_agent("acme", f"e{number}", "Sleeper", 60) for number in range(2)]
    assert (await pool.schedule_agent("acme", "e0", "Sleeper", 60)).id == tasks[0].id
    with pytest.raises(agentpool.AgentLimitError, match="TOTAL_LIMIT"):
        await pool.schedule_agent("acme", "e2", "Sleeper", 60)
    for task in tasks:
        await task.cancel()


async def test_agents_mail_and_delayed_tasks_are_held_too(pool: Pool) -> None:
    agent = await pool.spawn("Sleeper", tenant="acme", timeout=10)
    mail = [await agent.submit(60) for _ in range(2)]
    await wait_until(has_status(mail[0], "leased"))
    later = await pool.submit("Sleeper", 60, tenant="acme", delay=60)
    await pool.limit_tenant("acme", agents=4, running=2)
    with pytest.raises(agentpool.AgentLimitError, match="TOTAL_LIMIT"):
        await pool.schedule_agent("acme", "e1", "Sleeper", 0)
    assert await pool.run("Sleeper", 0, tenant="acme", timeout=10, when_limited="reject"), "there is room for it now"
    await later.cancel()
    assert await (await pool.schedule_agent("acme", "e2", "Sleeper", 0)).result(10)
    for task in reversed(mail):
        await task.cancel()


async def test_mail_of_an_agent_that_is_not_at_work_takes_a_place(pool: Pool) -> None:
    async def is_there() -> bool:
        return bool(await pool.agents())

    await pool.limit_tenant("acme", running=1)
    spawning = asyncio.create_task(pool.spawn("SlowToStart", id="slow", tenant="acme", timeout=30))
    await wait_until(is_there)
    mail = await pool.agent("slow").submit(None)
    with pytest.raises(agentpool.AgentLimitError, match="CONCURRENT_LIMIT"):
        await pool.submit("Counter", 1, tenant="acme", when_limited="reject")
    await mail.cancel()
    assert await pool.run("Counter", 1, tenant="acme", timeout=10, when_limited="reject") == 1
    spawning.cancel()
    await asyncio.wait([spawning])


async def test_tasks_and_tokens_a_minute(pool: Pool) -> None:
    await pool.limit_tenant("acme", requests_per_minute=3)
    agent = await pool.spawn("Counter", tenant="acme", timeout=10)
    assert await agent.run(1) == 1
    assert [await pool.run("Counter", 1, tenant="acme", timeout=10) for _ in range(2)] == [1, 2]
    waits = await pool.submit("Counter", 1, tenant="acme")
    with pytest.raises(agentpool.AgentLimitError, match="REQUEST_RATE_LIMIT") as caught:
        await pool.submit("Counter", 1, tenant="acme", when_limited="reject")
    assert 50 < (caught.value.retry_after or 0) <= 60
    assert (await pool.tenant("acme")).requests_last_minute == 3
    await pool.limit_tenant("acme", requests_per_minute=None)
    assert await waits.result(10) == 3

    assert await pool.run("Spender", 600, tenant="big", timeout=10) == 600
    assert (await pool.tenant("big")).tokens_last_minute == 600
    await pool.limit_tenant("big", tokens_per_minute=1000)
    waits = await pool.submit("Spender", 600, tenant="big")
    await asyncio.sleep(0.05)
    assert (await waits.info())["status"] == "queued"
    await pool.limit_tenant("big", tokens_per_minute=600)
    with pytest.raises(agentpool.AgentLimitError, match="TOKEN_RATE_LIMIT"):
        await pool.submit("Spender", 1, tenant="big", when_limited="reject")
    await pool.limit_tenant("big", tokens_per_minute=1300)
    assert await waits.result(10) == 600
    with pytest.raises(agentpool.TaskFailed, match="TASK_TOKEN_LIMIT"):
        await pool.run("Spender", 801, tenant="small", timeout=10)


async def test_slot_time_is_shared_between_tenants(pool: Pool) -> None:
    _ = [await pool.spawn("Counter", timeout=10) for _ in range(CAPACITY - 1)]
    await pool.limit_tenant("heavy", weight=2)
    order: list[str] = []

    async def ask(tenant: str, seconds: float) -> None:
        await pool.run("Napper", seconds, tenant=tenant, timeout=20)
        order.append(tenant)

    for tenant in ("many", "few", "heavy"):
        await ask(tenant, 0.02)
    busy = await pool.submit("Napper", 0.15)
    await wait_until(has_status(busy, "leased"))
    order.clear()
    asking = [asyncio.create_task(ask("many", 0.02)) for _ in range(16)]
    await wait_until(lambda: _queued(pool, 16))
    asking += [asyncio.create_task(ask(tenant, 0.02)) for tenant in ["few"] * 4 + ["heavy"] * 8]
    await asyncio.gather(*asking)
    shared = order[:16]
    assert 3 <= shared.count("few") <= 4, order
    assert 6 <= shared.count("heavy") <= 8, order


async def _queued(pool: Pool, count: int) -> bool:
    return (await pool.stats()).queued_tasks == count


async def test_full_queues_tell_when_to_come_again(pool: Pool) -> None:
    await pool.limit_tenant("acme", queued=2, running=1)
    tasks = [await pool.submit("Sleeper", 60, tenant="acme")]
    await wait_until(has_status(tasks[0], "leased"))
    tasks += [await pool.submit("Sleeper", 60, tenant="acme") for _ in range(2)]
    with pytest.raises(agentpool.QueueFull, match='tasks of tenant "acme"') as caught:
        await pool.submit("Sleeper", 60, tenant="acme")
    assert caught.value.retry_after
    for task in reversed(tasks):
        await task.cancel()
