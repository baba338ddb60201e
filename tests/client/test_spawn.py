"""Spawning: what it waits for, why it may fail, and that nothing is left when nobody waits any more."""

import asyncio
from typing import Any

import pytest
from support.seeds import incarnation
from support.tiny_pool import MASTER, POOL, TinyPool, tiny_pool
from support.wait import wait_until

from agentpool import (
    Agent,
    AgentFailed,
    AgentTerminated,
    ConfigError,
    Context,
    DuplicateAgent,
    InvalidInput,
    NoCapacity,
    QueueFull,
    RedisUnavailable,
    UnknownAgentType,
)
from agentpool.client import Client
from agentpool.client.client import RedisClient
from agentpool.client.replies import Replies
from agentpool.doctor import examine


async def is_empty(tiny: TinyPool) -> bool:
    return await tiny.store.agents.names(POOL) == []


class Echo(Agent):
    async def run(self, ctx: Context, input: int) -> int:
        return input


async def test_spawn_returns_when_the_agent_is_ready(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker("w1")
    agent = await client.pool(POOL).spawn(
        Echo, id="a", tenant="acme", project="x", max_idle_time=1.5, heartbeat_interval=0.0001, timeout=5
    )
    record = await agent.info()
    assert agent.id == record.agent_id == f"{POOL}/a"
    assert (record.status, record.process_id, record.agent_type) == ("idle", "w1", "Echo")
    assert (record.tenant, record.project, record.max_idle_ms, record.heartbeat_ms) == ("acme", "x", 1500, 1)


async def test_a_generated_id(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    agent = await client.pool(POOL).spawn("Echo", timeout=5)
    assert len(agent.id.partition("/")[2]) == 22


async def test_spawn_waits_for_a_worker(client: Client, tiny: TinyPool) -> None:
    spawning = asyncio.ensure_future(client.pool(POOL).spawn("Echo", timeout=5))
    await wait_until(lambda: _pending(client, 1))
    await tiny.add_worker()
    await spawning
    assert await _pending(client, 0)


async def _pending(client: Client, count: int) -> bool:
    return (await client.pool(POOL).stats()).pending_agents == count


async def test_spawn_without_a_timeout(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    assert await client.pool(POOL).spawn("Echo", id=f"{POOL}/full", timeout=None)


async def test_a_hundred_at_once(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker(capacity=100)
    await asyncio.gather(*(client.pool(POOL).spawn("Echo", timeout=10) for _ in range(100)))
    assert (await client.pool(POOL).stats()).agent_count == 100


# -- refused ----------------------------------------------------------------------------------------------------


async def test_refusals_leave_the_registry_alone(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    await pool.spawn("Echo", id="a", timeout=5)
    keys = await tiny.store.connection.redis.keys("*")
    with pytest.raises(UnknownAgentType, match='Did you mean "Echo"'):
        await pool.spawn("Ech")
    with pytest.raises(DuplicateAgent, match="agentpool terminate"):
        await pool.spawn("Echo", id="a")
    with pytest.raises(InvalidInput, match="another pool"):
        await pool.spawn("Echo", id="other/a")
    for name in ("max_idle_time", "heartbeat_interval", "timeout"):
        for value in (0, -1, float("nan"), float("inf"), True, "5"):
            with pytest.raises(InvalidInput) as caught:
                await pool.spawn("Echo", **{name: value})  # type: ignore[arg-type]
            assert caught.value.path == f"$.{name}"
    assert sorted(await tiny.store.connection.redis.keys("*")) == sorted(keys)


async def test_a_class_that_is_no_agent(client: Client) -> None:
    class Lazy(Agent):
        pass

    for wrong in (int, Lazy):
        with pytest.raises(ConfigError):
            await client.pool(POOL).spawn(wrong)  # type: ignore[arg-type]


async def test_too_many_wait(redis_url: str) -> None:
    async with tiny_pool(redis_url, POOL, max_pending=1) as tiny:
        client = RedisClient(tiny.store)
        first = asyncio.ensure_future(client.pool(POOL).spawn("Echo"))
        await wait_until(lambda: _pending(client, 1))
        with pytest.raises(QueueFull):
            await client.pool(POOL).spawn("Echo")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await client.close()


# -- not in time ------------------------------------------------------------------------------------------------


async def no_capacity(client: Client, timeout: float = 0.1) -> NoCapacity:
    with pytest.raises(NoCapacity) as caught:
        await client.pool(POOL).spawn("Echo", timeout=timeout)
    assert (caught.value.pool, caught.value.asked) == (POOL, 1)
    assert str(caught.value).startswith(
        f'Pool "{POOL}" did not get 1 agent(s) to run in time: {caught.value.free} free'
    )
    return caught.value


async def test_no_master_leads(client: Client, tiny: TinyPool) -> None:
    await tiny.store.locks.release(POOL, "leader", tiny.token)
    assert "start agentpool-master" in str(await no_capacity(client))
    assert await is_empty(tiny)


async def test_all_workers_are_full(client: Client, tiny: TinyPool) -> None:
    for _ in range(3):
        await tiny.add_worker(capacity=0, works=False)
    assert "raise max_workers" in str(await no_capacity(client))
    assert await is_empty(tiny)


async def test_workers_are_still_starting(client: Client, tiny: TinyPool) -> None:
    await tiny.order()
    assert "1 worker(s) were still starting" in str(await no_capacity(client))


async def test_no_worker_was_started(client: Client, tiny: TinyPool) -> None:
    assert "No worker was started in time" in str(await no_capacity(client))


async def test_restarts_were_given_up(client: Client, tiny: TinyPool) -> None:
    await tiny.store.pools.update(POOL, tiny.token, "restarts", "ImportError: no such module")
    error = str(await no_capacity(client))
    assert "ImportError: no such module" in error
    assert f"agentpool scale {POOL}" in error


async def test_start_is_still_running(client: Client, tiny: TinyPool) -> None:
    worker = await tiny.add_worker("w1")
    worker.starts = False
    error = await no_capacity(client)
    assert "start() was still running on worker w1" in str(error)
    assert error.free == 10
    assert await is_empty(tiny)


async def test_start_keeps_failing(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker("w1", works=False)
    spawning = asyncio.ensure_future(no_capacity(client, timeout=0.3))
    agent = await _first_agent(tiny)
    await tiny.store.agents.fail(
        POOL, "w1", agent, await incarnation(tiny.store, agent, POOL), failures=1, error="ValueError: boom", final=False
    )
    assert "ValueError: boom" in str(await spawning)


async def test_an_agent_whose_worker_crashed(client: Client, tiny: TinyPool) -> None:
    workers = [await tiny.add_worker(f"w{n}", works=False) for n in range(2)]
    spawning = asyncio.ensure_future(no_capacity(client, timeout=0.5))
    await _first_agent(tiny)
    for _ in workers:
        record = (await tiny.store.agents.all(POOL))[0]
        await tiny.lose(next(worker for worker in workers if worker.id == record.process_id))
    assert "its worker was lost" in str(await spawning)


async def _first_agent(tiny: TinyPool) -> str:
    return (await wait_until(lambda: tiny.store.agents.names(POOL)))[0]


async def test_an_agent_that_is_ready_in_the_last_moment_is_kept(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiny.add_worker()

    async def late(*_: object) -> None:
        await asyncio.sleep(0.2)
        raise TimeoutError

    monkeypatch.setattr(Replies, "wait", late)
    agent = await client.pool(POOL).spawn("Echo", timeout=5)
    assert (await agent.info()).status == "idle"


# -- ended before it was ready ----------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [True, False])
async def test_restarts_of_the_agent_were_given_up(client: Client, tiny: TinyPool, published: bool) -> None:
    await tiny.add_worker("w1", works=False)
    if not published:
        await tiny.store.connection.redis.execute_command("ACL", "SETUSER", "default", "-subscribe")
    try:
        spawning = asyncio.ensure_future(client.pool(POOL).spawn("Echo", timeout=5))
        agent = await _first_agent(tiny)
        await tiny.store.agents.fail(
            POOL,
            "w1",
            agent,
            await incarnation(tiny.store, agent, POOL),
            failures=5,
            error="ValueError: boom",
            final=True,
        )
        with pytest.raises(AgentFailed, match="ValueError: boom"):
            await spawning
    finally:
        await tiny.store.connection.redis.execute_command("ACL", "SETUSER", "default", "+subscribe")


async def test_who_asks_for_the_same_agent_and_gives_up_says_nothing_of_the_others(client: RedisClient) -> None:
    replies, id = client.backend.replies, f"{POOL}/a"
    first, second = replies.agent(id), replies.agent(id)
    replies.leave(id, second)
    replies._due.add(id)
    await replies.look_up()
    assert not first.done(), "Redis may not have that request yet"
    replies.accept(id)
    third = replies.agent(id)
    replies.leave(id, first)
    replies._due.add(id)
    await replies.look_up()
    assert not third.done()
    replies.leave(id, third)
    assert not replies._unsent


async def test_it_was_terminated_by_someone_else(client: Client, tiny: TinyPool) -> None:
    spawning = asyncio.ensure_future(client.pool(POOL).spawn("Echo", id="a", timeout=5))
    await _first_agent(tiny)
    await client.pool(POOL).agent("a").terminate()
    with pytest.raises(AgentTerminated, match="terminated on request"):
        await spawning


# -- nobody waits any more --------------------------------------------------------------------------------------


async def test_cancelling_withdraws_what_waits(client: Client, tiny: TinyPool) -> None:
    spawning = asyncio.ensure_future(client.pool(POOL).spawn("Echo"))
    await _first_agent(tiny)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert await is_empty(tiny)


async def test_cancelling_withdraws_what_starts(client: Client, tiny: TinyPool) -> None:
    worker = await tiny.add_worker()
    worker.starts = False
    spawning = asyncio.ensure_future(client.pool(POOL).spawn("Echo"))
    await _first_agent(tiny)
    spawning.cancel()
    await asyncio.gather(spawning, return_exceptions=True)
    assert await is_empty(tiny)
    assert (await client.pool(POOL).stats()).used_capacity == 0


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_at_any_moment_leaves_no_slot_used(client: Client, tiny: TinyPool, turns: int) -> None:
    await tiny.add_worker()
    spawning = [asyncio.ensure_future(client.pool(POOL).spawn("Echo")) for _ in range(5)]
    for _ in range(turns * 3):
        await asyncio.sleep(0.0005)
    for each in spawning:
        each.cancel()
    done = await asyncio.gather(*spawning, return_exceptions=True)
    kept = [each for each in done if not isinstance(each, BaseException)]
    await wait_until(lambda: _agents(client, len(kept)))
    assert await examine(tiny.store) == []


async def _agents(client: Client, count: int) -> bool:
    return len(await client.pool(POOL).agents()) == count


async def test_cancelling_a_refused_spawn_ends_nobody_elses_agent(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    await client.pool(POOL).spawn("Echo", id="a", timeout=5)
    for _ in range(20):
        spawning = asyncio.ensure_future(client.pool(POOL).spawn("Echo", id="a"))
        await asyncio.sleep(0)
        spawning.cancel()
        await asyncio.gather(spawning, return_exceptions=True)
    assert (await client.pool(POOL).agent("a").info()).status == "idle"


async def test_an_agent_that_came_to_run_though_the_reply_was_lost_is_ended(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiny.add_worker()
    place = client.store.agents.place

    async def unheard(*given: Any, **named: Any) -> None:
        await place(*given, **named)
        await wait_until(lambda: _status(tiny, "idle"))
        raise RedisUnavailable("the reply was lost")

    monkeypatch.setattr(client.store.agents, "place", unheard)
    with pytest.raises(RedisUnavailable):
        await client.pool(POOL).spawn("Echo", id="a", timeout=5)
    await wait_until(lambda: is_empty(tiny))


async def _status(tiny: TinyPool, status: str) -> bool:
    return [record.status for record in await tiny.store.agents.all(POOL)] == [status]


async def test_redis_is_away_for_longer_than_the_timeout(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise RedisUnavailable("Redis does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(client.store.agents, "several", away)
        patch.setattr(client.store.agents, "withdraw", away)
        with pytest.raises(RedisUnavailable):
            await client.pool(POOL).spawn("Echo", timeout=0.3)
        assert not await is_empty(tiny), "it could not be withdrawn yet"
    await wait_until(lambda: is_empty(tiny), timeout=5, message="it is withdrawn when Redis is back")


async def test_leader_is_known(tiny: TinyPool) -> None:
    assert await tiny.store.locks.leader(POOL) == MASTER
