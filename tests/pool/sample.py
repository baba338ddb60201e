"""Agents whose every step a test controls, and what must be true of a pool between two steps of the loop."""

import asyncio
from typing import Any, ClassVar

from agentpool import Agent, Context
from agentpool.pool import AgentPool, Lease, PoolConfig, PooledState


class Controlled(Agent):
    """Base of the classes that `controlled()` makes; the class attributes are a test's switches."""

    start_gate: ClassVar[asyncio.Event | None]
    stop_gate: ClassVar[asyncio.Event | None]
    start_errors: ClassVar[list[BaseException]]
    unhealthy: ClassVar[set[str]]
    alive: ClassVar[set["Controlled"]]
    made: ClassVar[list["Controlled"]]
    id: str

    async def start(self, ctx: Context) -> None:
        cls = type(self)
        self.id, self.runs = ctx.agent_id, 0
        cls.made.append(self)
        if cls.start_gate:
            await cls.start_gate.wait()
        if cls.start_errors:
            raise cls.start_errors.pop(0)
        cls.alive.add(self)

    async def run(self, ctx: Context, input: Any) -> Any:
        assert self.runs < 1000, "it is asked for its snapshot at the same time"
        self.runs += 1
        if isinstance(input, asyncio.Event):
            await input.wait()
        elif isinstance(input, BaseException):
            raise input
        elif input == "spin":
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    if type(self).start_gate is not None:
                        return "swallowed"
        return self.runs

    async def stop(self, ctx: Context) -> None:
        await asyncio.sleep(0)
        if gate := type(self).stop_gate:
            await gate.wait()
        type(self).alive.discard(self)


def controlled(**members: Any) -> type[Controlled]:
    """A fresh class, so that tests do not share switches."""
    switches = {
        "start_gate": None,
        "stop_gate": None,
        "start_errors": [],
        "unhealthy": set(),
        "alive": set(),
        "made": [],
    }
    return type("Controlled", (Controlled,), {**switches, **members})


class Counting(Agent):
    """Keeps a number, which a recycle takes along."""

    async def start(self, ctx: Context) -> None:
        self.number = 0

    async def run(self, ctx: Context, input: int) -> int:
        self.number += input
        return self.number

    async def snapshot(self, ctx: Context) -> int:
        return self.number

    async def restore(self, ctx: Context, state: Any) -> None:
        self.number = state


async def healthy(self: Controlled, ctx: Context) -> bool:
    """Give this as `healthy=healthy` to have agents that can be found ill."""
    return ctx.agent_id not in type(self).unhealthy


async def snapshot(self: Controlled, ctx: Context) -> int:
    """Give this with `restore` to have agents that keep how often they ran; meanwhile they can do nothing else."""
    self.runs += 1000
    try:
        for _ in range(15):
            await asyncio.sleep(0)
    finally:
        self.runs -= 1000
    return self.runs


async def restore(self: Controlled, ctx: Context, state: int) -> None:
    self.runs = state


def config(**changes: Any) -> PoolConfig:
    """A pool that makes nothing ahead, with short deadlines."""
    return PoolConfig(
        **{
            "min_size": 0, "max_size": 2, "cancel_grace": 0.05, "stop_timeout": 0.2, "drain_timeout": 0.05,
            "breaker_backoff": 0.02, "breaker_backoff_max": 0.02, **changes,
        }
    )  # fmt: skip


async def hold(pool: AgentPool, count: int) -> list[Lease]:
    return [await pool.acquire() for _ in range(count)]


def ask(pool: AgentPool, timeout: float | None = None, priority: int = 5) -> "asyncio.Task[Lease]":
    async def acquire() -> Lease:
        return await pool.acquire(timeout, priority=priority)

    return asyncio.create_task(acquire())


async def steps(count: int = 10) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


def check(pool: AgentPool) -> None:
    """The invariants that hold between any two steps of the loop."""
    core, metrics = pool._core, pool.metrics()
    by_state = dict.fromkeys(PooledState, 0)
    for member in core.members.values():
        by_state[member.state] += 1
    counted = (metrics.starting, metrics.idle, metrics.active, metrics.recycling)
    assert counted == tuple(by_state[PooledState(name)] for name in ("starting", "idle", "active", "recycling"))
    assert sum(counted) == len(core.members)
    assert metrics.leaving == pool.leaving <= len(core.leaving.tasks)
    assert sum(counted) + metrics.leaving == metrics.total == pool.total <= pool.config.max_size
    out = metrics.acquired - metrics.released
    assert out >= 0
    assert out <= metrics.active or core.closing, "an agent is idle while somebody holds it"
    assert by_state[PooledState.TERMINATED] == 0
    assert len(core.idle) == len(set(core.idle)) == metrics.idle
    assert all(member.state is PooledState.IDLE for member in core.idle)
    assert metrics.spawned == len(core.members) + metrics.terminated
    assert [member.last_used for member in core.idle] == sorted(member.last_used for member in core.idle)
    assert metrics.waiting == sum(1 for _ in core.waiters)
    waiting = [waiter for waiter in core.waiters if not waiter.future.done()]
    assert not (waiting and core.idle), "somebody waits while an agent is idle"
    assert pool._recycler.under_way <= pool.config.recycles_at_once


async def check_closed(pool: AgentPool, agent: type[Controlled]) -> None:
    """Nothing is left of a closed pool."""
    await steps()
    check(pool)
    assert (pool.metrics().total, pool.metrics().waiting) == (0, 0)
    assert not pool._core.leaving.tasks
    assert not agent.alive, [one.id for one in agent.alive]
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, others
