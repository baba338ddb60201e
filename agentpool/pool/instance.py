"""One agent object: made, started, run, stopped, each call with its deadline."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from agentpool.agent import Agent, AgentType, Context
from agentpool.clock import monotonic
from agentpool.pool.calls import Call, Code, Ended, Meter, Owner, Tell, brief
from agentpool.pool.config import PoolConfig

__all__ = ["Instance", "MakeContext", "checks_health", "facts_of_failure"]

log = logging.getLogger(__name__)

MakeContext = Callable[[str, str | None], Context]
"""Makes what an agent is told of itself, from its id and the id of its present task (None: for its life)."""


class Instance:
    """`on_broken(instance)` is called, once, when the agent cannot go on and must be replaced.

    `broken` says why, and `traceback` where its code raised, if it did, also in a start; both are '' before.
    """

    def __init__(
        self,
        type: AgentType,
        config: PoolConfig,
        id: str,
        make_context: MakeContext,
        on_broken: Callable[["Instance"], None],
    ) -> None:
        self.type, self.id, self.meter = type, id, Meter()
        self.born = monotonic()
        self.requests = 0
        self.broken = self.traceback = ""
        self.memory_base_mb: float | None = None
        self._config, self._on_broken = config, on_broken
        self._context = make_context(id, None)
        self._owner = Owner(id, config.cancel_grace, self.meter, self._gave_up)
        self._run_label = f"{type.name}.run() of {id}"
        self._deaf: list[Call] = []
        self._agent: Any = None
        self._started = False
        self._closing: asyncio.Task[None] | None = None

    def break_(self, reason: str, traceback: str = "") -> None:
        """Say that the agent must be replaced; the first reason counts."""
        if not self.broken:
            self.broken, self.traceback = reason, traceback
            self._on_broken(self)

    # -- its life -----------------------------------------------------------------------------------------------

    def start(self, state: msgspec.Raw | None = None) -> Call:
        """Make and start the agent, and give it back its state if there is one."""
        timeout = self.type.cls.start_timeout or self._config.start_timeout
        call = self._call("start()", timeout, self._start, state)
        call.then(self._start_ended)
        return call

    async def _start(self, state: msgspec.Raw | None) -> None:
        self._agent = self.type.cls()
        await self._agent.start(self._context)
        self._started = True  # so that it is stopped, whatever comes now
        if state is not None and self.type.has_restore:
            await self._agent.restore(self._context, msgspec.json.decode(state))

    def _start_ended(self, ended: Ended) -> None:
        if not ended.well:
            self.traceback = ended.traceback()
            return
        self.born = monotonic()
        if self.type.has_background and self._closing is None:
            call = self._call("background()", None, self._agent.background, self._context)
            call.then(self._background_ended)

    def _background_ended(self, ended: Ended) -> None:
        if not ended.well and not ended.why:
            self.break_(ended.describe("background()"), ended.traceback())

    async def close(self) -> None:
        """End what the agent still does, and let it clean up, once; cancelling a waiter does not cut it short."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close {self.id}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for call in self.stop_calls("the agent is stopped"):
            await call.ended()
        if not self._started:
            return
        ended = await self._call("stop()", self._config.stop_timeout, self._agent.stop, self._context).ended()
        if not ended.well:
            self._log_failure("agent.stop_failed", ended.describe("stop()"), ended)

    def stop_calls(self, why: str) -> list[Call]:
        """Cancel whatever of the agent runs; returns it."""
        calls = list(self._owner.under_way)
        for call in calls:
            call.stop(why)
        return calls

    def stop_runs(self, why: str) -> None:
        """Cancel the tasks of the agent, and leave its background work alone."""
        for call in [call for call in self._owner.under_way if call.label == self._run_label]:
            call.stop(why)

    def calls_that_ignore_their_end(self) -> list[str]:
        """Return the labels of calls that were given up and still run."""
        return [call.label for call in self._deaf if call.still_runs]

    # -- what it is asked ---------------------------------------------------------------------------------------

    def run(self, context: Context, input: Any, timeout: float | None, tell: Tell, then: Tell | None = None) -> Call:
        """Begin one task; `tell` and `then` are told of its end."""
        self.requests += 1
        return Call(
            self._owner, self._run_label, timeout, self._agent.run, (context, input), (tell, then) if then else (tell,),
            context.task_id, context.mark,
        )  # fmt: skip

    def ask_health(self, timeout: float) -> Call:
        """Ask the agent whether it can go on."""
        return self._call("healthy()", timeout, self._agent.healthy, self._context)

    async def check_health(self, timeout: float) -> bool:
        """Ask the agent whether it can go on; one that says no, raises or does not answer in time is broken."""
        ended = await self.ask_health(timeout).ended()
        if ended.well and ended.value:
            return True
        if not ended.why or ended.timed_out:
            self.break_unhealthy(ended)
        return False

    def break_unhealthy(self, ended: Ended) -> None:
        """Say that the agent must be replaced, as its `healthy()` ended like this."""
        self.break_("healthy() said no" if ended.well else ended.describe("healthy()"), ended.traceback())

    async def snapshot(self) -> msgspec.Raw | None:
        """Return the state that the agent wants to find again, as JSON, or None when there is none to be had."""
        if not (self._started and self.type.has_snapshot):
            return None
        ended = await self._call("snapshot()", self._config.stop_timeout, self._agent.snapshot, self._context).result()
        if not ended.well:
            problem = ended.describe("snapshot()")
        else:
            try:
                return msgspec.Raw(msgspec.json.encode(ended.value))
            except Exception as error:  # noqa: BLE001 (an agent's own classes may raise anything here)
                problem = f"snapshot() returned what has no JSON form: {brief(error)}"
        self._log_failure("agent.snapshot_failed", problem, ended)
        return None

    async def restore(self, state: msgspec.Raw) -> Ended:
        """Give a started agent the state of another."""
        decoded = msgspec.json.decode(state)
        timeout = self._config.start_timeout
        ended = await self._call("restore()", timeout, self._agent.restore, self._context, decoded).ended()
        self.traceback = self.traceback or ended.traceback()
        return ended

    def memory_mb(self) -> float | None:
        """Return what the agent says it holds, if it says anything."""
        tell = getattr(self._agent, "memory_mb", None)
        if not callable(tell):
            return None
        try:
            return float(tell())
        except Exception:
            log.exception("agent.memory_failed", extra={"agent_id": self.id})
            return None

    def _call(self, what: str, timeout: float | None, code: Code, *arguments: Any) -> Call:
        """Begin a call that is no task."""
        return Call(
            self._owner, f"{self.type.name}.{what} of {self.id}", timeout, code, arguments, mark=self._context.mark
        )

    def _gave_up(self, call: Call, ended: Ended) -> None:
        self._deaf.append(call)
        problem = f"{call.label} ignored its cancellation ({ended.why})"
        log.error("agent.ignores_cancellation", extra={"agent_id": self.id, "error": problem})
        self.break_(problem)

    def _log_failure(self, event: str, problem: str, ended: Ended) -> None:
        log.error(event, extra=facts_of_failure(self.id, problem, ended.traceback()))


def facts_of_failure(agent_id: str, problem: str, traceback: str) -> dict[str, str]:
    """Return what a log line carries of a failure: where the agent raised only if it did."""
    return {"agent_id": agent_id, "error": problem, **({"traceback": traceback} if traceback else {})}


def checks_health(type: AgentType) -> bool:
    """Tell whether the class has a `healthy()` of its own; asking the default one would only cost time."""
    return type.cls.healthy is not Agent.healthy
