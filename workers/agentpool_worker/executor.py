"""Takes tasks and runs them: from the mailboxes of idle pinned agents, and by type for free slots.

One claim is in flight at a time, and claims are numbered: after a lost reply the same number gets the same tasks, so
none is held by a worker that does not know of it.
"""

import asyncio
from collections.abc import Callable, Collection

import structlog

from agentpool.errors import RedisUnavailable
from agentpool.hosting import Host, Run
from agentpool.protocol.records import ClaimedTask, Outcome
from agentpool_worker.place import WorkPlace
from agentpool_worker.turns import Turns

__all__ = ["Executor"]

log = structlog.get_logger("worker")

NAMES_PER_CLAIM = 100
CLAIM_RETRY_DELAY = 0.5


class Executor:
    """`on_gone()` is called when a claim shows that this worker was given up."""

    def __init__(self, place: WorkPlace, host: Host, turns: Turns, *, on_gone: Callable[[], None]) -> None:
        self._place, self._host, self._agents, self._on_gone = place, host, host.agents, on_gone
        self._turn = turns.of("executor", self.poke)
        self._woken = asyncio.Event()
        self._mail: set[str] = set()
        self._lanes = self._lanes_left = False
        self._number, self._unanswered = 0, False
        self._cancelled_early: dict[str, str] = {}
        self._open = True
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}

    # -- what others tell it ------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Let the loop turn."""
        self._woken.set()

    def wake_agent(self, name: str) -> None:
        """An agent has mail."""
        self._mail.add(name)
        self.poke()

    def wake_lanes(self) -> None:
        """There are tasks by type."""
        self._lanes = True
        self.poke()

    def slots_changed(self) -> None:
        """A slot may be free: look again at the lanes that were left full."""
        if self._lanes_left:
            self.wake_lanes()

    def agent_idle(self, name: str, has_mail: bool) -> None:
        """A pinned agent can take a task."""
        if has_mail:
            self._mail.add(name)
        self.poke()

    def running(self) -> set[str]:
        """Return the ids of the running tasks."""
        return set(self._runs)

    def cancel(self, task_id: str, why: str = "cancelled on request") -> None:
        """Cancel a task that runs, or that comes with the claim whose answer is on its way."""
        if entry := self._runs.get(task_id):
            entry[0].stop(why)
        elif self._unanswered:
            self._cancelled_early[task_id] = why

    def cancel_types(self, types: Collection[str], why: str) -> None:
        """Cancel the running tasks of pooled agents of these types."""
        for run, _ in self._runs.values():
            if run.task.header.agent_type in types:
                run.stop(why)

    def cancel_all(self, why: str) -> None:
        """Cancel all running tasks."""
        for task_id in list(self._runs):
            self.cancel(task_id, why)

    async def settle(self) -> None:
        """Claim nothing new; wait until a claim whose reply was lost is known, so that nothing is held unseen."""
        self._open = False
        while self._unanswered:
            self.poke()
            await asyncio.sleep(0.01)

    async def finished(self) -> None:
        """Wait until no task runs and all outcomes are recorded."""
        while self._runs:
            await asyncio.wait([task for _, task in self._runs.values()])

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim whenever there is something to claim and someone to do it."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                while await self._claim():
                    pass
            except RedisUnavailable as error:
                log.warning("redis.unavailable", doing="claim", error=str(error))
                asyncio.get_running_loop().call_later(CLAIM_RETRY_DELAY, self.poke)
            self._turn.answer()

    async def _claim(self) -> bool:
        """Claim once; False when there was nothing to claim for."""
        self._mail = {name for name in self._mail if self._agents.holds(name)}
        names = [name for name in self._mail if self._agents.is_idle(name)][:NAMES_PER_CLAIM] if self._open else []
        by_type = self._free_slots() if self._lanes and self._open else 0
        if not (names or by_type or self._unanswered):
            return False
        self._mail.difference_update(names)
        self._unanswered = True
        try:
            with self._turn.away():
                claim = await self._place.store.tasks.claim(
                    self._place.pool, self._place.worker_id, self._number + 1, by_type=by_type, names=names
                )
        except RedisUnavailable:
            self._mail.update(names)
            raise
        self._number, self._unanswered = self._number + 1, False
        if claim is None:
            self._on_gone()
            return False
        if by_type:
            # What is left in the lanes needs a slot first; the end of a run asks again.
            self._lanes, self._lanes_left = False, claim.lanes > 0
        for task in claim.tasks:
            self._begin(task)
        self._cancelled_early.clear()
        return True

    def _free_slots(self) -> int:
        by_type = sum(1 for run, _ in self._runs.values() if not run.task.header.agent_name)
        return max(0, self._place.settings.capacity - self._agents.count - by_type)

    # -- one task -----------------------------------------------------------------------------------------------

    def _begin(self, task: ClaimedTask) -> None:
        if task.id in self._runs:
            return
        run = Run(self._host.place, task)
        if why := self._cancelled_early.get(task.id):
            run.stop(why)
        self._runs[task.id] = (run, asyncio.create_task(self._carry_out(run), name=f"task {task.id}"))

    async def _carry_out(self, run: Run) -> None:
        """Come to an outcome and record it, whatever happens."""
        log.debug("task.started", task_id=run.task.id)
        outcome = await self._host.carry_out(run)
        try:
            waiting = await self._record(run.task, outcome)
        finally:
            del self._runs[run.task.id]
            self.poke()
        self._host.finish(run, has_mail=waiting > 0)

    @staticmethod
    def _tell(task: ClaimedTask, outcome: Outcome, *, late: bool) -> None:
        """Log an outcome: what failed as a warning, with the agent's own words and traceback."""
        bound = log.bind(
            task_id=task.id,
            agent=task.header.agent_name or task.header.agent_type,
            duration_ms=outcome.duration_ms,
            late=late,
        )
        error = outcome.error
        if error is None:
            bound.debug(f"task.{outcome.status}")
            return
        text = f"{error.type}: {error.message}"
        bound.warning(
            f"task.{outcome.status}", error=text, **({"exception": error.traceback} if error.traceback else {})
        )

    async def _record(self, task: ClaimedTask, outcome: Outcome) -> int:
        complete, name = self._place.store.tasks.complete, task.header.agent_name
        reply = await self._place.insist("complete", lambda: complete(self._place.worker_id, task.id, name, outcome))
        self._tell(task, outcome, late=reply is None)
        if reply is None:
            return 0
        mail, lanes = reply
        if lanes:
            self.wake_lanes()
        return int(mail)
