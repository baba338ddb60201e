"""A cancellation at any await point leaks no place, no agent, nobody in line."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest
from pool.sample import (
    Controlled,
    ask,
    check,
    check_closed,
    config,
    controlled,
    healthy,
    restore,
    snapshot,
    steps,
)
from support.wait import wait_until

from agentpool.pool import AgentPool, PooledState
from agentpool.pool.saving import _save


class CancelAt:
    """Awaits a coroutine and cancels its task at one await point: as it begins to wait, or (`late`) in the very step in
    which that for which it waits has come. `reached` tells whether there was such a point.
    """  # fmt: skip

    def __init__(self, point: int, code: Coroutine[Any, Any, Any], *, late: bool) -> None:
        self.point, self.late, self.reached = point, late, False
        self._code = code

    def __await__(self) -> Generator[Any, Any, Any]:
        code = self._code
        task, point, result = asyncio.current_task(), 0, None
        assert task is not None
        step: Callable[[], Any] = lambda: code.send(None)  # noqa: E731
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value
            if point == self.point:
                self.reached = True
                if self.late and waits_for is not None:
                    waits_for.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            point += 1
            try:
                result = yield waits_for
            except BaseException as error:
                step = lambda thrown=error: code.throw(thrown)  # noqa: E731
            else:
                step = lambda value=result: code.send(value)  # noqa: E731


class Memory:
    """A storage that takes a few steps."""

    def __init__(self) -> None:
        self.data: bytes | None = None

    async def save(self, data: bytes) -> None:
        await steps(2)
        self.data = data
        await steps(1)

    async def load(self) -> bytes | None:
        await steps(2)
        return self.data


Scene = Callable[[AgentPool, type[Controlled]], Awaitable[Coroutine[Any, Any, Any]]]


async def use(pool: AgentPool, timeout: float | None = None) -> None:
    async with pool.acquire(timeout) as lease:
        await lease.run(1)


async def released_by_and_by(pool: AgentPool) -> None:
    """Two agents, of which one is idle and one is given back after a few steps."""
    held, idle = await pool.acquire(), await pool.acquire()
    pool.release(idle)
    loop = asyncio.get_running_loop()

    def later(count: int) -> None:
        if count:
            loop.call_soon(later, count - 1)
        else:
            pool.release(held)

    loop.call_soon(later, 6)


async def cold(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    return use(pool)


async def in_line(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    await released_by_and_by(pool)
    other = await pool.acquire()
    asyncio.get_running_loop().call_later(0.01, pool.release, other)
    return use(pool, timeout=5)


async def ill(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    await released_by_and_by(pool)
    agent.unhealthy.update(member.id for member in pool._core.idle)
    return use(pool, timeout=5)


async def warm(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    return pool.warm()


async def save(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    await released_by_and_by(pool)
    return pool.save_state(Memory(), timeout=5)


async def save_one_in_use(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    await released_by_and_by(pool)
    (member,) = (member for member in pool._core.members.values() if member.state is PooledState.ACTIVE)
    return _save(pool._core, member, 5)


async def load(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    """Into a full pool, whose agents make way."""
    memory = Memory()
    async with AgentPool(agent, pool.config, name="earlier") as earlier:
        async with earlier.acquire() as one, earlier.acquire() as other:
            await asyncio.gather(one.run(1), other.run(1))
        await earlier.save_state(memory)
    await wait_until(lambda: pool.metrics().idle == 2)
    return pool.load_state(memory)


async def close(pool: AgentPool, agent: type[Controlled]) -> Coroutine[Any, Any, Any]:
    await released_by_and_by(pool)
    return pool.close(drain_timeout=5)


@pytest.mark.parametrize("late", [False, True], ids=["as it waits", "as it comes"])
@pytest.mark.parametrize(
    ("scene", "least"),
    [(cold, 2), (in_line, 2), (ill, 3), (warm, 1), (save, 3), (save_one_in_use, 2), (load, 4), (close, 1)],
)
async def test_a_cancellation_at_any_await_point_leaks_nothing(scene: Scene, least: int, late: bool) -> None:
    for point in range(100):
        agent = controlled(healthy=healthy, snapshot=snapshot, restore=restore)
        pool = AgentPool(agent, config(min_size=2 if scene in (warm, load) else 0, drain_timeout=5))
        await pool.open()
        canceller = CancelAt(point, await scene(pool, agent), late=late)
        task = asyncio.ensure_future(canceller)
        await asyncio.wait([task])
        assert task.cancelled() == canceller.reached, task
        check(pool)
        if scene is not close:
            await asyncio.gather(*(use(pool, timeout=5) for _ in range(3)))
            await wait_until(lambda pool=pool: pool.metrics().active == 0)
        check(pool)
        await pool.close()
        await check_closed(pool, agent)
        metrics = pool.metrics()
        assert metrics.acquired == metrics.released
        if not canceller.reached:
            assert point >= least, "the points are missed"
            return
    pytest.fail("it never ends")


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


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("deadline", [False, True])
async def test_a_release_while_the_wish_for_its_snapshot_is_being_withdrawn(count: int, deadline: bool) -> None:
    agent = controlled(snapshot=snapshot, restore=restore)
    async with AgentPool(agent, config()) as pool:
        held = await pool.acquire()
        saving = asyncio.create_task(pool.save_state(Memory(), timeout=0 if deadline else 5))
        await steps(0 if deadline else 4)
        if not deadline:
            saving.cancel()
        await steps(count)
        pool.release(held)
        check(pool)
        await asyncio.wait([saving])
        assert deadline or saving.cancelled()
        await wait_until(lambda: pool.metrics().idle == 1)
        assert pool._core.idle[0].claim is None
        await use(pool, timeout=1)
