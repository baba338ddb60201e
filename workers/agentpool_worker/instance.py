"""One agent object: started, run, stopped, each call with its deadline. Pinned and pooled agents both are these."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog

from agentpool.agent import AgentType, Context
from agentpool_worker.calls import Call, Ended, brief, summary
from agentpool_worker.place import WorkPlace

__all__ = ["Instance", "StartFailed"]

log = structlog.get_logger("worker")


class StartFailed(Exception):
    """The agent could not be made or started; the text says why."""


class Instance:
    """`broken` is set, to the reason, when the agent cannot go on and must be replaced."""

    def __init__(
        self, place: WorkPlace, type: AgentType, agent_id: str, *, tenant: str, project: str = "", fence: int = 0
    ) -> None:
        self.type, self.agent_id, self.tenant, self.fence = type, agent_id, tenant, fence
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._place, self._settings = place, place.settings
        self._calls: set[Call] = set()
        self._started = self._must_stop = False
        self._closing: asyncio.Task[None] | None = None
        self._context = self.context(tenant, project)
        self._agent: Any = None

    def context(self, tenant: str, project: str, task_id: str | None = None) -> Context:
        """Return what the agent is told of itself, for one task or for its life."""

        async def run(agent_type: Any, input: Any, *, timeout: float | None = None) -> Any:
            return await self._place.run_by_type(tenant, agent_type, input, timeout=timeout)

        return Context(
            agent_id=self.agent_id,
            pool=self._place.pool,
            tenant=tenant,
            project=project or None,
            task_id=task_id,
            fence=self.fence,
            run=run,
        )

    def break_(self, reason: str) -> None:
        """Say that the agent must be replaced; the first reason counts."""
        if not self.broken.done():
            self.broken.set_result(reason)

    # -- its life -----------------------------------------------------------------------------------------------

    async def start(self, snapshot: str = "") -> None:
        """Make and start the agent, give it back its state, begin its background work; raises `StartFailed`."""
        timeout = self.type.cls.start_timeout or self._settings.agent_start_timeout
        ended = await self._call("start()", self._start(snapshot), timeout).ended()
        if not ended.well:
            raise StartFailed(summary("start()", ended, timeout))
        self._started = True
        if self.type.has_background:
            self._call("background()", self._agent.background(self._context), 0).then(self._background_ended)

    async def _start(self, snapshot: str) -> None:
        self._agent = self.type.cls()
        await self._agent.start(self._context)
        self._must_stop = True
        if snapshot and self.type.has_restore:
            await self._agent.restore(self._context, msgspec.json.decode(snapshot))

    def _background_ended(self, _: Call, ended: Ended) -> None:
        if not ended.well and not ended.why:
            self.break_(summary("background()", ended, 0))

    async def close(self) -> None:
        """End what the agent still does, and let it clean up, once; cancelling a waiter does not cut it short."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close {self.agent_id}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.stop_calls("the agent is stopped")
        if not self._must_stop:
            return
        timeout = self._settings.agent_stop_timeout
        ended = await self._call("stop()", self._agent.stop(self._context), timeout).ended()
        if not ended.well:
            log.error("agent.stop_failed", agent_id=self.agent_id, error=summary("stop()", ended, timeout))

    async def stop_calls(self, why: str) -> None:
        """Cancel whatever of the agent runs, and wait until it ended."""
        calls = self.stop_now(why)
        for call in calls:
            await call.ended()

    def stop_now(self, why: str) -> list[Call]:
        """Cancel whatever of the agent runs; returns it."""
        calls = list(self._calls)
        for call in calls:
            call.stop(why)
        return calls

    # -- what it is asked ---------------------------------------------------------------------------------------

    def run(self, context: Context, input: Any, timeout: float) -> Call:
        """Begin one task."""
        return self._call("run()", self._agent.run(context, input), timeout, task_id=context.task_id)

    async def is_healthy(self, timeout: float) -> bool:
        """Ask the agent whether it can go on; one that says no, raises or does not answer in time is broken."""
        ended = await self._call("healthy()", self._agent.healthy(self._context), timeout).ended()
        if ended.well and ended.value:
            return True
        if ended.why in ("", "timed_out"):
            self.break_("healthy() said no" if ended.well else summary("healthy()", ended, timeout))
        return False

    async def snapshot(self) -> str:
        """Return the state that the agent wants to find again, as JSON, or '' when there is none to be had."""
        if not (self._started and self.type.has_snapshot):
            return ""
        timeout = self._settings.agent_stop_timeout
        ended = await self._call("snapshot()", self._agent.snapshot(self._context), timeout).ended()
        state, problem = self._encode(ended.value) if ended.well else ("", summary("snapshot()", ended, timeout))
        if problem:
            log.error("agent.snapshot_failed", agent_id=self.agent_id, error=problem)
        return state

    def _encode(self, state: Any) -> tuple[str, str]:
        """Return a state as JSON, or '' and why it cannot be kept."""
        try:
            encoded = msgspec.json.encode(state)
        except Exception as error:  # noqa: BLE001 (an agent's own classes may raise anything here)
            return "", f"snapshot() returned what has no JSON form: {brief(error)}"
        bound = self._settings.max_result_bytes
        if len(encoded) > bound:
            return "", f"snapshot() returned {len(encoded)} bytes; the bound is {bound}"
        return encoded.decode(), ""

    def _call(self, what: str, code: Coroutine[Any, Any, Any], timeout: float, **bound: Any) -> Call:
        call = Call(
            code,
            label=f"{self.type.name}.{what} of {self.agent_id}",
            timeout=timeout,
            grace=self._settings.agent_stop_timeout,
            agent_id=self.agent_id,
            **bound,
        )
        self._calls.add(call)
        call.then(self._call_ended)
        return call

    def _call_ended(self, call: Call, ended: Ended) -> None:
        self._calls.discard(call)
        if ended.kind == "abandoned":
            self.break_(f"{call.label} ignored its cancellation ({ended.why})")
