"""One pinned agent on this worker, from its placement until it ends, moves or is given up.

Its life is one task: start, tell Redis, serve until something breaks; then again after a delay, until
`policy.restarts` gives up. Whoever wants it gone cancels the life, and the agent is always stopped on the way out.
"""

import asyncio
import random
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import structlog

from agentpool.agent import AgentType
from agentpool.clock import monotonic
from agentpool.errors import UnknownAgentType
from agentpool.periodic import end_task
from agentpool.policy.restarts import next_restart
from agentpool.protocol.events import EventName
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import DesiredAgent
from agentpool_worker.calls import brief, describe
from agentpool_worker.instance import Instance, StartFailed
from agentpool_worker.place import WorkPlace
from agentpool_worker.run import Run
from agentpool_worker.upkeep import Upkeep

__all__ = ["Phase", "Pinned"]

log = structlog.get_logger("worker")


class Phase(StrEnum):
    """Where an agent is in its life on this worker."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    RESTARTING = "restarting"
    LEAVING = "leaving"


class Pinned:
    """`on_idle(pinned, has_mail)` is called whenever the agent can take a task."""

    def __init__(
        self,
        place: WorkPlace,
        desired: DesiredAgent,
        upkeep: Upkeep,
        on_idle: Callable[["Pinned", bool], None],
        after: "Pinned | None" = None,
    ) -> None:
        self.desired, self.id = desired, desired.agent_id
        self.name = split_id(desired.agent_id)[1]
        self.incarnation = desired.incarnation
        self.phase = Phase.STARTING
        self.instance: Instance | None = None
        self._place, self._settings, self._store = place, place.settings, place.store
        self._upkeep, self._on_idle, self._after = upkeep, on_idle, after
        self.last_used = monotonic()
        self._run: Run | None = None
        self._ran = False
        self._free = asyncio.Event()
        self._free.set()
        self._life = asyncio.create_task(self._live(), name=f"life of {self.id}")

    # -- tasks --------------------------------------------------------------------------------------------------

    def begin(self, run: Run) -> Instance | None:
        """Take a task; returns the agent to run it on, or None when it is not idle."""
        if self.phase is not Phase.IDLE or self.instance is None or self.instance.broken.done():
            return None
        self.phase, self._run = Phase.RUNNING, run
        self._free.clear()
        return self.instance

    def finish(self, run: Run, has_mail: bool) -> None:
        """The outcome is recorded: the agent can take the next task."""
        if self._run is not run:
            return
        self._run, self.last_used = None, monotonic()
        self._free.set()
        if self.phase is Phase.RUNNING:
            self.phase = Phase.IDLE
            self._on_idle(self, has_mail)

    async def free(self) -> None:
        """Wait until no task runs and its outcome is recorded."""
        await self._free.wait()

    # -- its end ------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Tell whether its life here is over."""
        return self._life.done()

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

    async def hand_over(self) -> str:
        """Once free, let the agent say what it wants to find again, then stop it; returns its snapshot."""
        await self.free()
        idle, self.phase = self.phase is Phase.IDLE, Phase.LEAVING
        state = await self.instance.snapshot() if idle and self.instance else ""
        await self.terminate()
        return state

    # -- its life -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        if self._after:
            await asyncio.wait({self._after._life})
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
        except (StartFailed, UnknownAgentType) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (whatever it is, it counts as a failure, or it would recur for ever)
            log.error("agent.lost_track", agent_id=self.id, traceback=describe(error).traceback)
            return brief(error)

    async def _serve_one(self, type: AgentType) -> str:
        desired = self.desired
        instance = self.instance = Instance(
            self._place,
            type,
            self.id,
            tenant=desired.tenant,
            project=desired.project,
            fence=self.incarnation,
        )
        try:
            await instance.start(await self._snapshot() if type.has_restore else "")
            return await self._serve_started(instance)
        finally:
            if self.phase is not Phase.LEAVING:
                self.phase = Phase.RESTARTING
            await self._close(instance)

    async def _serve_started(self, instance: Instance) -> str:
        waiting = await self._insist("confirm", self._store.agents.confirm)
        if waiting is None:
            log.info("agent.superseded", agent_id=self.id, incarnation=self.incarnation)
            return ""
        log.debug(EventName.AGENT_STARTED, agent_id=self.id, incarnation=self.incarnation)
        self._ran, self.phase, self.last_used = True, Phase.IDLE, monotonic()
        self._on_idle(self, waiting > 0)
        with self._upkeep.of(self, instance):
            return await asyncio.shield(instance.broken)

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
        """Tell Redis of a failure; False when the agent belongs elsewhere now."""
        final = delay is None
        again = EventName.AGENT_BROKE if self._ran else EventName.AGENT_START_FAILED
        name = EventName.AGENT_FAILED if final else again
        log.error(name, agent_id=self.id, failures=failures, again_in_s=delay, error=problem)
        fail = self._store.agents.fail
        return bool(await self._insist("fail", fail, failures=failures, error=problem, final=final))

    async def _snapshot(self) -> str:
        return await self._place.insist("snapshot", lambda: self._store.agents.snapshot(self._place.pool, self.name))

    async def _insist(self, what: str, call: Callable[..., Any], **arguments: Any) -> Any:
        who = (self._place.pool, self._place.worker_id, self.name, self.incarnation)
        return await self._place.insist(what, lambda: call(*who, **arguments))
