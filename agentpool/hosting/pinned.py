"""One pinned agent on this host, from its placement until it ends, moves or is given up.

Its life is one task: start, tell the registry, serve until something breaks; then again after a delay, until
`policy.restarts` gives up. Whoever wants it gone cancels the life, and the agent is always stopped on the way out.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial

import msgspec

from agentpool.agent import AgentType
from agentpool.clock import monotonic
from agentpool.errors import UnknownAgentType
from agentpool.hosting.place import Place
from agentpool.hosting.run import Run
from agentpool.hosting.upkeep import Upkeep
from agentpool.periodic import end_task
from agentpool.policy.restarts import next_restart
from agentpool.pool.calls import brief, describe
from agentpool.pool.instance import Instance
from agentpool.protocol.events import EventName
from agentpool.protocol.keys import split_id
from agentpool.protocol.marks import agent_mark
from agentpool.protocol.records import DesiredAgent

__all__ = ["Phase", "Pinned"]

log = logging.getLogger(__name__)


class Phase(StrEnum):
    """Where an agent is in its life on this host."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    RESTARTING = "restarting"
    LEAVING = "leaving"


class Pinned:
    """`on_idle(pinned, has_mail)` is called whenever the agent can take a task."""

    def __init__(
        self,
        place: Place,
        desired: DesiredAgent,
        upkeep: Upkeep,
        on_idle: Callable[["Pinned", bool], None],
        after: "Sequence[Pinned]" = (),
    ) -> None:
        self.desired, self.id = desired, desired.agent_id
        self.name = split_id(desired.agent_id)[1]
        self.incarnation = desired.incarnation
        self.phase = Phase.STARTING
        self.instance: Instance | None = None
        self._place, self._settings = place, place.settings
        self._upkeep, self._on_idle, self._after = upkeep, on_idle, after
        self.last_used = monotonic()
        self._run: Run | None = None
        self._ran = False
        self.gone = asyncio.Event()
        """It was terminated, and its `stop()` has ended or was given up."""
        self._free = asyncio.Event()
        self._free.set()
        self._life = asyncio.create_task(self._live(), name=f"life of {self.id}")

    # -- tasks --------------------------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Take a task, if the agent is idle: `run.pinned` tells."""
        if self.phase is Phase.IDLE and self.instance and not self.instance.broken:
            self.phase, self._run, run.pinned = Phase.RUNNING, run, self
            self._free.clear()

    def finish(self, run: Run, has_mail: bool) -> None:
        """The outcome is recorded: the agent can take the next task."""
        if self._run is not run:
            return
        self._run, self.last_used = None, monotonic()
        self._free.set()
        if self.phase is Phase.RUNNING:
            self.phase = Phase.IDLE
            self._on_idle(self, has_mail)

    @property
    def is_idle(self) -> bool:
        """Tell whether it can take a task now."""
        return self.phase is Phase.IDLE

    async def free(self) -> None:
        """Wait until no task runs and its outcome is recorded."""
        await self._free.wait()

    # -- its end ------------------------------------------------------------------------------------------------

    @property
    def error(self) -> BaseException | None:
        """What ended its life though nothing should: a fault of this package."""
        return None if not self._life.done() or self._life.cancelled() else self._life.exception()

    def when_ended(self, tell: Callable[["Pinned"], None]) -> None:
        """Have `tell` called at the end of its life here."""
        self._life.add_done_callback(lambda _: tell(self))

    async def terminate(self, why: str = "terminated") -> None:
        """Cancel its task, stop the agent, end its life here."""
        self.phase = Phase.LEAVING
        if self._run:
            self._run.stop(why)
        await end_task(self._life)
        if self.instance:
            await self.instance.close()
        self.gone.set()

    async def hand_over(self) -> str:
        """Once free, let the agent say what it wants to find again, then stop it; returns its snapshot."""
        await self.free()
        idle, self.phase = self.phase is Phase.IDLE, Phase.LEAVING
        state = await self.instance.snapshot() if idle and self.instance else None
        await self.terminate()
        return self._bounded(state)

    def _bounded(self, state: msgspec.Raw | None) -> str:
        """Return a snapshot as text, or '' when there is none or it is too large to keep."""
        kept, bound = bytes(state or b""), self._settings.max_result_bytes
        if len(kept) > bound:
            problem = f"snapshot() returned {len(kept)} bytes; the bound is {bound}"
            log.error("agent.snapshot_failed", extra={"agent_id": self.id, "error": problem})
            return ""
        return kept.decode()

    # -- its life -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        for earlier in self._after:
            await earlier.gone.wait()
        failures = 0
        while True:
            began = monotonic()
            problem = await self._serve()
            if not problem:
                return
            # What ran well for long does not count together with what failed before.
            lasted = monotonic() - began > self._settings.boot_backoff_max
            failures = 1 if lasted else failures + 1
            delay = self._delay(failures)
            if not await self._report(problem, failures, delay) or delay is None:
                return
            await asyncio.sleep(delay)

    async def _serve(self) -> str:
        """Run one instance until it breaks; returns why, or '' when the agent belongs elsewhere now."""
        self.phase, self._ran = Phase.STARTING, False
        try:
            return await self._serve_one(self._place.type(self.desired.agent_type))
        except UnknownAgentType as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (whatever it is, it counts as a failure, or it would recur for ever)
            log.error("agent.lost_track", extra={"agent_id": self.id, "traceback": describe(error).traceback})
            return brief(error)

    async def _serve_one(self, type: AgentType) -> str:
        desired, broke = self.desired, asyncio.Event()
        mark, make = self._place.marks.begin(agent_mark(self.name)), self._place.context
        instance = self.instance = Instance(
            type,
            self._settings.agents,
            self.id,
            partial(make, tenant=desired.tenant, project=desired.project, fence=self.incarnation, mark=mark),
            lambda _: broke.set(),
        )
        try:
            started = await instance.start(await self._snapshot(type)).ended()
            if not started.well:
                return started.describe("start()")
            return await self._serve_started(instance, broke)
        finally:
            if self.phase is not Phase.LEAVING:
                self.phase = Phase.RESTARTING
            await self._close(instance)
            self._place.marks.end(mark)

    async def _serve_started(self, instance: Instance, broke: asyncio.Event) -> str:
        waiting = await self._place.registry.confirm(self.name, self.incarnation)
        if waiting is None:
            log.info("agent.superseded", extra={"agent_id": self.id, "incarnation": self.incarnation})
            return ""
        log.debug(EventName.AGENT_STARTED, extra={"agent_id": self.id, "incarnation": self.incarnation})
        self._ran, self.phase, self.last_used = True, Phase.IDLE, monotonic()
        self._on_idle(self, waiting > 0)
        with self._upkeep.of(self, instance):
            await broke.wait()
        return instance.broken

    async def _snapshot(self, type: AgentType) -> msgspec.Raw | None:
        state = await self._place.registry.snapshot(self.name) if type.has_restore else ""
        return msgspec.Raw(state.encode()) if state else None

    async def _close(self, instance: Instance) -> None:
        if self._run:
            self._run.stop("agent_failed" if self.phase is Phase.RESTARTING else "terminated")
        await instance.close()
        if self.phase is Phase.RESTARTING:
            # Its outcome is recorded before the agent is said to have failed.
            await self.free()

    def _delay(self, failures: int) -> float | None:
        return next_restart(
            failures,
            backoff=self._settings.boot_backoff,
            backoff_max=self._settings.boot_backoff_max,
            failures_max=self._settings.boot_failures_max,
            jitter=random.random(),  # noqa: S311 (jitter, no secret)
        )

    async def _report(self, problem: str, failures: int, delay: float | None) -> bool:
        """Tell the registry of a failure; False when the agent belongs elsewhere now."""
        final = delay is None
        again = EventName.AGENT_BROKE if self._ran else EventName.AGENT_START_FAILED
        name = EventName.AGENT_FAILED if final else again
        facts = {"agent_id": self.id, "failures": failures, "again_in_s": delay, "error": problem}
        if self.instance and self.instance.traceback:
            facts["traceback"] = self.instance.traceback
        log.error(name, extra=facts)
        return await self._place.registry.fail(
            self.name, self.incarnation, failures=failures, error=problem, final=final
        )
