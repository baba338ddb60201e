"""Acquiring an agent of one's own and releasing it: that one has it alone, and that nothing is left afterwards."""

import asyncio
import contextlib
import gc
from typing import Any

import pytest
from support.tiny_pool import POOL, TinyPool
from support.wait import wait_until

from agentpool import (
    Agent,
    Context,
    InvalidInput,
    NoCapacity,
    PoolClosed,
    RedisUnavailable,
    UnknownAgent,
    UnknownAgentType,
    UnknownPool,
    connect,
)
from agentpool.client import AgentHandle, Client
from agentpool.doctor import examine


async def agents(tiny: TinyPool) -> list[str]:
    return await tiny.store.agents.names(POOL)


async def nothing_is_left(tiny: TinyPool) -> None:
    async def is_empty() -> bool:
        return await agents(tiny) == []

    await wait_until(is_empty)
    assert (await tiny.store.pools.observe(POOL)).free_slots == sum(worker.capacity for worker in tiny.workers)
    assert await examine(tiny.store) == []


async def turns(count: int) -> None:
    """Let pass a few turns of the loop, some of them long enough for an answer of Redis."""
    for turn in range(count):
        await asyncio.sleep(0.0005 if turn % 3 == 2 else 0)


class Echo(Agent):
    async def run(self, ctx: Context, input: int) -> float:
        raise NotImplementedError


# -- held and given back ----------------------------------------------------------------------------------------


async def test_for_a_block(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    async with client.pool(POOL).acquire("Echo", tenant="acme", project="x") as agent:
        assert type(agent) is AgentHandle
        assert await agent.run(1) == 1
        record = await agent.info()
        assert (record.tenant, record.project, record.max_idle_ms) == ("acme", "x", 600_000)
    await nothing_is_left(tiny)
    assert (await tiny.store.agents.ended(agent.id)) == ("terminated", "released")


async def test_in_two_steps(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    first, second = [await pool.acquire(Echo, max_idle_time=None) for _ in range(2)]
    assert first.id != second.id
    assert (await first.info()).max_idle_ms == 0
    assert type(await first.run(1)) is float, "the class types results"
    await pool.release(first)
    with pytest.raises(UnknownAgent):
        await first.info()
    assert await second.run(2) == 2
    await pool.release(second)
    await nothing_is_left(tiny)


async def test_each_caller_has_an_agent_alone(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker(capacity=5)
    held: set[str] = set()

    async def hold(number: int) -> None:
        async with client.pool(POOL).acquire("Echo", timeout=20) as agent:
            assert agent.id not in held
            held.add(agent.id)
            assert len(held) <= 5
            assert await agent.run(number) == number
            held.remove(agent.id)

    await asyncio.gather(*(hold(number) for number in range(30)))
    await nothing_is_left(tiny)


async def test_a_block_that_raises_gives_it_back(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    with pytest.raises(ZeroDivisionError):
        async with client.pool(POOL).acquire("Echo"):
            raise ZeroDivisionError
    await nothing_is_left(tiny)


async def test_a_request_can_be_used_once(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    request = client.pool(POOL).acquire("Echo")
    async with request:
        with pytest.raises(RuntimeError, match="once"):
            await request
    with pytest.raises(RuntimeError, match="once"):
        async with request:
            pass


async def test_what_is_refused(client: Client, tiny: TinyPool) -> None:
    pool = client.pool(POOL)
    with pytest.raises(UnknownAgentType, match='Did you mean "Echo"'):
        await pool.acquire("Ech")
    with pytest.raises(UnknownPool, match=POOL):
        await client.pool("developer_poo").acquire("Echo")
    for name in ("timeout", "max_idle_time"):
        with pytest.raises(InvalidInput) as caught:
            await pool.acquire("Echo", **{name: 0})  # type: ignore[arg-type]
        assert caught.value.path == f"$.{name}"
    with pytest.raises(NoCapacity):
        async with pool.acquire("Echo", timeout=0.1):
            pass
    await nothing_is_left(tiny)


# -- releases that have nothing to do, or must not ----------------------------------------------------------------


async def test_releasing_twice_is_harmless(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    async with pool.acquire("Echo") as agent:
        await pool.release(agent)
    await pool.release(agent)
    await nothing_is_left(tiny)


async def test_releasing_what_has_ended_is_harmless(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    async with client.pool(POOL).acquire("Echo") as agent:
        await agent.terminate()
        await tiny.store.connection.redis.delete(tiny.store.keys.ended(*agent.id.split("/")))
        with pytest.raises(UnknownAgent):
            await agent.terminate()
    await nothing_is_left(tiny)


async def test_an_agent_of_elsewhere_is_not_released(client: Client, tiny: TinyPool, redis_url: str) -> None:
    await tiny.add_worker()
    async with client.pool(POOL).acquire("Echo") as agent:
        with pytest.raises(InvalidInput, match='of another pool, not of "other"'):
            await client.pool("other").release(agent)
        async with connect(redis_url) as stranger:
            with pytest.raises(InvalidInput, match="by another client"):
                await stranger.pool(POOL).release(agent)
        assert (await agent.info()).status == "idle"


async def test_a_closed_client_acquires_nothing_and_releases_quietly(redis_url: str, tiny: TinyPool) -> None:
    await tiny.add_worker()
    async with connect(redis_url) as client:
        agent = await client.pool(POOL).acquire("Echo")
    await client.pool(POOL).release(agent)
    assert await agents(tiny) == [agent.id.partition("/")[2]], "it ends by its max_idle_time"
    with pytest.raises(PoolClosed):
        await client.pool(POOL).acquire("Echo")
    await client.open()
    await client.pool(POOL).release(agent)
    await client.close()
    await nothing_is_left(tiny)


async def test_a_block_that_closes_the_client_raises_its_own_error(redis_url: str, tiny: TinyPool) -> None:
    await tiny.add_worker()
    client = connect(redis_url)
    await client.open()
    with pytest.raises(ZeroDivisionError):
        async with client.pool(POOL).acquire("Echo"):
            await client.close()
            raise ZeroDivisionError


async def test_a_block_whose_client_is_closed_elsewhere_gives_its_agent_back(redis_url: str, tiny: TinyPool) -> None:
    gate = asyncio.Event()

    async def wait(_: Any) -> None:
        await gate.wait()

    await tiny.add_worker(handler=wait)

    async def hold() -> None:
        async with client.pool(POOL).acquire("Echo") as agent:
            await agent.run(1)

    async with connect(redis_url) as client:
        holding = asyncio.ensure_future(hold())
        await wait_until(lambda: _is_running(tiny))
    with pytest.raises(PoolClosed, match="while task"):
        await holding
    await nothing_is_left(tiny)


async def _is_running(tiny: TinyPool) -> bool:
    return (await tiny.store.pools.observe(POOL)).running_tasks == 1


async def test_a_release_need_not_be_awaited(client: Client, tiny: TinyPool, recwarn: pytest.WarningsRecorder) -> None:
    await tiny.add_worker()
    client.pool(POOL).release(await client.pool(POOL).acquire("Echo"))
    await nothing_is_left(tiny)
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)]


# -- nobody waits any more --------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", range(0, 60, 3))
async def test_cancelling_an_acquire_at_any_moment(client: Client, tiny: TinyPool, moment: int) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    asking = [asyncio.ensure_future(pool.acquire("Echo")) for _ in range(5)]
    await turns(moment)
    for each in asking:
        each.cancel()
    done = await asyncio.gather(*asking, return_exceptions=True)
    await asyncio.gather(*(pool.release(each) for each in done if isinstance(each, AgentHandle)))
    await nothing_is_left(tiny)


@pytest.mark.parametrize("moment", range(0, 60, 3))
async def test_cancelling_a_block_at_any_moment(client: Client, tiny: TinyPool, moment: int) -> None:
    await tiny.add_worker(capacity=3)

    async def hold() -> None:
        async with client.pool(POOL).acquire("Echo") as agent:
            await agent.run(1)

    holding = [asyncio.ensure_future(hold()) for _ in range(5)]
    await turns(moment)
    for each in holding:
        each.cancel()
    await asyncio.gather(*holding, return_exceptions=True)
    await nothing_is_left(tiny)


@pytest.mark.parametrize("moment", range(8))
async def test_cancelling_a_release_does_not_stop_it(client: Client, tiny: TinyPool, moment: int) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    held = await asyncio.gather(*(pool.acquire("Echo") for _ in range(5)))
    releasing = [asyncio.ensure_future(pool.release(agent)) for agent in held]
    await turns(moment)
    for each in releasing:
        each.cancel()
    await asyncio.gather(*releasing, return_exceptions=True)
    await nothing_is_left(tiny)


async def test_a_cancelled_holder_that_is_cancelled_again_while_it_releases(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    holds = asyncio.Event()

    async def hold() -> None:
        async with client.pool(POOL).acquire("Echo"):
            holds.set()
            await asyncio.Event().wait()

    holding = asyncio.ensure_future(hold())
    await holds.wait()
    for _ in range(3):
        holding.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await holding
    await nothing_is_left(tiny)


async def test_closing_the_client_sees_a_release_through(redis_url: str, tiny: TinyPool) -> None:
    await tiny.add_worker()
    async with connect(redis_url) as client:
        agent = await client.pool(POOL).acquire("Echo")
        releasing = asyncio.ensure_future(client.pool(POOL).release(agent))
        releasing.cancel()
    assert await agents(tiny) == []
    with contextlib.suppress(asyncio.CancelledError):
        await releasing


@pytest.mark.parametrize("starts", [False, True])
async def test_closing_the_client_takes_back_what_is_waited_for(redis_url: str, tiny: TinyPool, starts: bool) -> None:
    if starts:
        (await tiny.add_worker()).starts = False
    async with connect(redis_url) as client:
        asking = asyncio.ensure_future(client.pool(POOL).acquire("Echo"))
        await wait_until(lambda: agents(tiny))
    with pytest.raises(PoolClosed, match=r"closed while agent .* was not ready; the request was withdrawn\. Open"):
        await asking
    await nothing_is_left(tiny)


async def test_redis_is_away_when_it_is_released(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise RedisUnavailable("Redis does not answer")

    await tiny.add_worker()
    with monkeypatch.context() as patch:
        patch.setattr("agentpool.client.pool.RELEASE_WAITS_S", 0.1)
        patch.setattr(client.store.agents, "terminate", away)
        async with client.pool(POOL).acquire("Echo"):
            pass  # what was done is done: its caller gets no error
        assert len(await agents(tiny)) == 1
    await nothing_is_left(tiny)
