"""Spawning: place an agent, wait until it runs, and take the request back when nobody waits any more."""

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

import msgspec

from agentpool.client.replies import Answer, Waiter
from agentpool.clock import monotonic
from agentpool.errors import AgentFailed, AgentPoolError, AgentTerminated, NoCapacity, RedisUnavailable, UnknownAgent
from agentpool.protocol.commands import AgentEnded
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import AgentRecord, PoolInfo, PoolView
from agentpool.protocol.states import AgentStatus

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["Spawn", "spawn_agent"]


class Spawn(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that is asked for. `operation` marks the request, so that a repeat or a withdrawal means only it."""

    agent_id: str
    agent_type: str
    tenant: str
    project: str
    max_idle_ms: int
    heartbeat_ms: int
    operation: str


async def spawn_agent(client: "Client", request: Spawn, timeout: float | None) -> None:
    """Return when the agent's `start()` has finished; cancelling this, or a timeout, withdraws the request."""
    deadline = math.inf if timeout is None else monotonic() + timeout
    replies = client.replies
    with replies.agent(request.agent_id) as waiter:
        placing = asyncio.ensure_future(_place(client, request, timeout))
        try:
            await asyncio.shield(placing)
            replies.accept(waiter)
            left = None if timeout is None else max(deadline - monotonic(), 0)
            answer = await _wait_or_withdraw(client, request, waiter, left)
        except asyncio.CancelledError:
            await client.cleanup.run(lambda: _undo(client, request, placing))
            raise
        except RedisUnavailable:
            client.cleanup.start(lambda: _undo(client, request, placing))
            raise
    if isinstance(answer, AgentEnded):
        error = AgentFailed if answer.status == AgentStatus.FAILED else AgentTerminated
        raise error(f"Agent {request.agent_id} has ended before it was ready: {answer.detail or answer.status}")


async def _wait_or_withdraw(client: "Client", request: Spawn, waiter: Waiter, timeout: float | None) -> Answer | None:
    """Return the answer, or None when the agent runs though none came; raises why it does not run in time."""
    try:
        return await client.replies.wait(waiter, timeout)
    except TimeoutError:
        await _withdraw(client, request)
        return None


async def _place(client: "Client", request: Spawn, timeout: float | None) -> None:
    pool, name = split_id(request.agent_id)
    await client.store.agents.place(
        pool,
        name,
        request.agent_type,
        tenant=request.tenant,
        project=request.project,
        max_idle_ms=request.max_idle_ms,
        heartbeat_ms=request.heartbeat_ms,
        reply_to=client.replies.reply_to,
        operation=request.operation,
        timeout=timeout,
    )


async def _undo(client: "Client", request: Spawn, placing: "asyncio.Future[None]") -> None:
    """Take back a request whose caller is gone, also if the agent runs by now: nobody would ever end it."""
    await asyncio.wait([placing])
    error = placing.exception()
    if error and not isinstance(error, RedisUnavailable):
        return  # it was refused
    runs = await client.store.agents.withdraw(request.agent_id, request.operation)
    if runs is not None and error is None:
        await client.store.agents.terminate(request.agent_id, detail="withdrawn: the caller stopped waiting")


async def _withdraw(client: "Client", request: Spawn) -> None:
    """Take back a request whose time is over; returns if the agent runs by now, else raises why it does not."""
    record: AgentRecord | None = None
    with contextlib.suppress(UnknownAgent):
        record = await client.store.agents.get(request.agent_id)
    if await client.store.agents.withdraw(request.agent_id, request.operation) is None:
        raise await _explain(client, request, record) from None


async def _explain(client: "Client", request: Spawn, record: AgentRecord | None) -> AgentPoolError:
    pool = split_id(request.agent_id)[0]
    info, view = await client.store.pools.info(pool), await client.store.pools.observe(pool)
    leader = await client.store.locks.leader(pool)
    return NoCapacity(pool, 1, view.free_slots, _why(record, info, view, leader))


def _why(record: AgentRecord | None, info: PoolInfo, view: PoolView, leader: str) -> str:
    """Tell why an agent did not run in time, and what to do."""
    if record and record.status is AgentStatus.PLACED:
        return _why_not_started(record)
    if not leader:
        return "No master leads this pool: start agentpool-master."
    if info.restarts:
        return (
            f"Starting workers was given up: {info.restarts}. When that is mended: agentpool scale {info.pool_name} "
            f"--workers {max(info.desired, 1)}"
        )
    if record and record.crashes:
        return f"It waits for another try: {record.last_error}"
    if view.workers - view.draining >= info.max_workers and not view.starting:
        return f"All {info.max_workers} workers are full: raise max_workers, or terminate agents."
    if view.starting:
        return f"{view.starting} worker(s) were still starting: allow a longer timeout."
    return "No worker was started in time: allow a longer timeout, or look into the master's log."


def _why_not_started(record: AgentRecord) -> str:
    if record.last_error:
        return f"Its start() keeps failing on worker {record.process_id}: {record.last_error}"
    return f"Its start() was still running on worker {record.process_id}: allow a longer timeout."
