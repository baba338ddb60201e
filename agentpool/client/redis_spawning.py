"""Spawning on Redis: place an agent, wait until it runs, and take the request back when nobody waits any more."""

import asyncio
import contextlib
import math

from agentpool.client.cleanup import Cleanup
from agentpool.client.replies import Replies
from agentpool.client.requests import Spawn
from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, NoCapacity, PoolClosed, RedisUnavailable, UnknownAgent
from agentpool.protocol.commands import AgentEnded, AgentReady
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import AgentRecord, PoolInfo, PoolView
from agentpool.protocol.states import AgentStatus
from agentpool.store import Store

__all__ = ["RedisSpawning"]


class RedisSpawning:
    """Carries spawns out on a store."""

    def __init__(self, store: Store, replies: Replies, cleanup: Cleanup) -> None:
        self._store, self._replies, self._cleanup = store, replies, cleanup

    async def spawn(self, request: Spawn, timeout: float | None) -> None:
        """Return when the agent's `start()` has finished; withdrawn by cancellation, timeout or the client's end."""
        deadline = math.inf if timeout is None else monotonic() + timeout
        future = self._replies.agent(request.agent_id)
        placing = asyncio.ensure_future(self._replies.recovery.insist(lambda: self.place(request, timeout)))
        try:
            await asyncio.shield(placing)
            self._replies.recovery.wait_for(request.agent_id, request)
            self._replies.accept(request.agent_id)
            left = None if timeout is None else max(deadline - monotonic(), 0)
            answer = await self._wait_or_withdraw(request, future, left)
        except (asyncio.CancelledError, PoolClosed):
            with self._replies.withdrawing():
                await self._cleanup.run(lambda: self._undo(request, placing))
            raise
        except RedisUnavailable:
            self._cleanup.start(lambda: self._undo(request, placing))
            raise
        finally:
            self._replies.recovery.leave(request.agent_id)
            self._replies.leave(request.agent_id, future)
        if isinstance(answer, AgentEnded):
            raise request.ended_early(answer.status, answer.detail)

    async def _wait_or_withdraw(
        self, request: Spawn, future: "asyncio.Future[AgentReady | AgentEnded]", timeout: float | None
    ) -> AgentReady | AgentEnded | None:
        """Return the answer, or None when the agent runs though none came; raises why it does not run in time."""
        try:
            return await self._replies.wait(
                future, timeout, "agent {} was not ready; the request was withdrawn", request.agent_id
            )
        except TimeoutError:
            await self._withdraw(request)
            return None

    async def place(self, request: Spawn, timeout: float | None = None) -> None:
        """Ask for the agent; may be repeated."""
        pool, name = split_id(request.agent_id)
        await self._store.agents.place(
            pool,
            name,
            request.agent_type,
            tenant=request.tenant,
            project=request.project,
            max_idle_ms=request.max_idle_ms,
            heartbeat_ms=request.heartbeat_ms,
            reply_to=self._replies.reply_to,
            operation=request.operation,
            timeout=timeout,
        )

    async def _undo(self, request: Spawn, placing: "asyncio.Future[None]") -> None:
        """Take back a request whose caller is gone, also if the agent runs by now: nobody would ever end it."""
        await asyncio.wait([placing])
        error = placing.exception()
        if error and not isinstance(error, RedisUnavailable):
            return  # it was refused
        await self._store.agents.withdraw(request.agent_id, request.operation, even_running=True)

    async def _withdraw(self, request: Spawn) -> None:
        """Take back a request whose time is over; returns if the agent runs by now, else raises why it does not."""
        record: AgentRecord | None = None
        with contextlib.suppress(UnknownAgent):
            record = await self._store.agents.get(request.agent_id)
        if await self._store.agents.withdraw(request.agent_id, request.operation) is None:
            raise await self._explain(request, record) from None

    async def _explain(self, request: Spawn, record: AgentRecord | None) -> AgentPoolError:
        pool = split_id(request.agent_id)[0]
        info, view = await self._store.pools.info(pool), await self._store.pools.observe(pool)
        leader = await self._store.locks.leader(pool)
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
    if record.failures:
        return f"Its start() keeps failing on worker {record.process_id}: {record.last_error}"
    return f"Its start() was still running on worker {record.process_id}: allow a longer timeout."
