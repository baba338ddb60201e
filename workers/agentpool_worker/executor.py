"""Takes tasks, has the host run them, and hands in what came of them: all in one exchange with Redis at a time.

Each exchange hands in what ended since the last one and takes new tasks, from the mailboxes of idle pinned agents and
by type for free slots. Exchanges are numbered: after a lost reply the same one is sent again and gets the same tasks,
so none is held by a worker that does not know of it. Which of the tasks by type starts when is decided by `slots.py`.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import structlog

from agentpool.clock import monotonic
from agentpool.errors import RedisUnavailable
from agentpool.hosting import GIVE_BACK, Ending, Host, Run
from agentpool.protocol.codec import encode_json
from agentpool.protocol.tasks import ClaimedTask, encode_task
from agentpool.store.tasks import EndedTask, Exchange
from agentpool_worker.auditing import audit_line, log_end
from agentpool_worker.place import WorkPlace
from agentpool_worker.recent import Recent
from agentpool_worker.reports import Reports
from agentpool_worker.slots import Slots
from agentpool_worker.turns import Turns

__all__ = ["Executor"]

log = structlog.get_logger("worker")

NAMES_PER_EXCHANGE = 50
ENDED_PER_EXCHANGE = 100
RETRY_DELAY_MIN, RETRY_DELAY_MAX = 0.01, 0.5
TOLD_STEP = 0.02
ENOUGH_ENDED = 80
MORE_END_S = 0.005
"""Where tasks are very short, an exchange waits for more to end: until so many have, or for so long, in s."""

NO_ROOM = (-1, 0)
CANCELLED = "cancelled on request"


class Executor:
    """`on_gone()` is called when an exchange shows that this worker was given up, `on_runaway(agent)` when an agent
    ignores its cancellation.
    """

    def __init__(
        self,
        place: WorkPlace,
        host: Host,
        turns: Turns,
        *,
        on_gone: Callable[[], None],
        on_runaway: Callable[[str], None],
    ) -> None:
        self._place, self._host, self._agents = place, host, host.agents
        self._on_gone, self._on_runaway = on_gone, on_runaway
        self._settings = place.settings
        self._turn = turns.of("executor", self.poke)
        self._woken = asyncio.Event()
        self._mail: set[str] = set()
        self._turns_wait = self._turns_left = False
        """There are tasks by type to ask for; there were some left at the last answer."""
        self._number, self._unanswered = 0, False
        self._gate = asyncio.Lock()
        """Held while an exchange is under way."""
        self._told_run = ""
        """The run of the server that was told what is here."""
        self._link = 0
        """The link over which the server was asked whether it was."""
        self._unknown: dict[str, str] = {}
        """Tasks that this worker has, as Redis said, but had not heard of, and why each is to be cancelled, or ''."""
        self._cancelled_early: dict[str, str] = {}
        self._open = True
        self._runs: dict[str, Run] = {}
        self._ended: dict[str, EndedTask] = {}
        """What ended and is not handed in yet; what is being handed in stays until that is answered."""
        self._slots = Slots(place, host)
        self._reports = Reports(place)
        self._recent = Recent()
        self._again: set[str] = set()
        """What is handed in once more."""
        self._all_recorded = asyncio.Event()
        self._all_recorded.set()

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
        self._turns_wait = True
        self.poke()

    def take(self, tasks: Iterable[ClaimedTask]) -> None:
        """Tasks by type were given to this worker without that it asked."""
        self._begin(tasks)

    def compare(self, task_ids: Iterable[str], cancelled: Collection[str]) -> None:
        """This worker has these tasks by type, some cancelled; the next exchange asks for those that are not here."""
        missing = [id for id in task_ids if id not in self._runs]
        self._unknown = {id: CANCELLED if id in cancelled else "" for id in missing}
        if missing:
            self.poke()

    def slots_changed(self) -> None:
        """A slot may be free."""
        self._slots.changed()
        if self._turns_left:
            self.wake_lanes()

    def agent_idle(self, name: str, has_mail: bool) -> None:
        """A pinned agent can take a task."""
        if has_mail:
            self._mail.add(name)
            self.poke()

    @property
    def ahead(self) -> int:
        """How many quick tasks by type may be given to this worker beyond its slots; may be asked in any thread."""
        return self._slots.ahead if self._open else 0

    def running(self) -> set[str]:
        """Return the ids of the tasks that this worker has."""
        return set(self._runs)

    def cancel(self, task_id: str, why: str = CANCELLED) -> None:
        """Cancel a task that is here, or that comes with the exchange whose answer is on its way."""
        if run := self._runs.get(task_id):
            self._slots.stop(run, why)
        elif self._unanswered:
            self._cancelled_early[task_id] = why

    def give_back_types(self, types: Collection[str]) -> None:
        """Stop the tasks of agents of these types; they go back to where they waited."""
        for run in list(self._runs.values()):
            if (run.pinned.desired.agent_type if run.pinned else run.task.header.agent_type) in types:
                self._slots.stop(run, GIVE_BACK)

    def give_back_all(self) -> None:
        """Stop all tasks; they go back to where they waited."""
        for run in list(self._runs.values()):
            self._slots.stop(run, GIVE_BACK)

    def report(self, task_id: str, progress: Any) -> None:
        """Pass on what a task reports; raises `TypeError` for what has no JSON form."""
        self._reports.add(task_id, progress)

    async def settle(self) -> None:
        """Take nothing new, give back what has not begun, and wait until an exchange without an answer has one, so that
        nothing is held unseen.
        """
        self._open = False
        self._slots.give_back_waiting()
        while self._unanswered:
            self.poke()
            await asyncio.sleep(0.01)

    async def finished(self) -> None:
        """Wait until no task is here and what became of each is recorded."""
        await self._all_recorded.wait()

    # -- a server that has started anew -------------------------------------------------------------------------

    def records(self) -> dict[str, bytes]:
        """Return the records, as they were submitted, of the tasks that are here or were handed in of late, by id."""
        tasks = [*(task for task, _ in self._recent.all()), *(run.task for run in self._runs.values())]
        return {task.id: encode_task(task.header, task.envelope) for task in tasks if task.envelope}

    def note_told(self, run: str) -> None:
        """The server knows, in this run, what is here."""
        self._told_run = run

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Let no exchange be under way in the block: what this worker has is what it has in Redis. Raises
        `RedisUnavailable` when the one under way is not answered.
        """
        try:
            async with asyncio.timeout(self._place.store.connection.timeout):
                await self._gate.acquire()
        except TimeoutError:
            raise RedisUnavailable("an exchange of tasks is not answered; it goes on when Redis is back") from None
        try:
            yield
        finally:
            self._gate.release()

    def hand_in_again(self) -> None:
        """Hand in once more what was handed in of late: the server may have lost it."""
        for task, ended in self._recent.all():
            if task.id not in self._runs:
                self._runs[task.id] = Run(self._host.place, task, self._done)
                self._ended[task.id] = ended
                self._again.add(task.id)
                self._all_recorded.clear()
        self.poke()

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Exchange whenever something ended, or there is something to take and someone to do it."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            goes_on = True
            while goes_on:
                async with self._gate:
                    goes_on = await self._exchange()
                self._turn.answer()

    async def _exchange(self) -> bool:
        """Exchange once; False when there was nothing to do."""
        if self._slots.has_very_short:
            await self._let_more_end()
        if self._reports.is_sending:
            await asyncio.sleep(0)  # what a task reported goes ahead of its end
        names = self._idle_with_mail()
        room, prefetch = (self._turns_wait and self._open and self._slots.room()) or NO_ROOM
        ended = list(islice(self._ended.values(), ENDED_PER_EXCHANGE))
        unknown = self._take_unknown()
        if not (ended or names or unknown or room >= 0):
            return False
        self._mail.difference_update(names)
        self._turns_wait = False
        number = self._number + 1
        answer = await self._insist(number, room, prefetch, ended, [*names, *unknown])
        self._number = number
        if answer is None:
            self._on_gone()
            return False
        self._record(ended, answer)
        self._begin(answer.tasks)
        self._cancelled_early.clear()
        self._turns_left = answer.turns > 0
        if self._turns_left and (room < 0 or any(not task.header.agent_name for task in answer.tasks)):
            self._turns_wait = True
        # Else what is left cannot be taken now; the end of a task, a command or a beat looks again.
        return True

    async def _let_more_end(self) -> None:
        """Let what begins in this step end before the exchange, and while tasks wait here some of those, too: fewer
        exchanges do the same.
        """
        until = monotonic() + MORE_END_S
        while True:
            await asyncio.sleep(0)
            if not self._slots.has_waiting or len(self._ended) >= ENOUGH_ENDED or monotonic() > until:
                return

    async def _insist(
        self, number: int, room: int, prefetch: int, ended: Sequence[EndedTask], names: Sequence[str]
    ) -> Exchange | None:
        """Send one exchange until it is answered: it may have been carried out, and only its own repeat tells."""
        self._unanswered = True
        delay = RETRY_DELAY_MIN
        while True:
            try:
                with self._turn.away():
                    await self._until_told()
                    answer = await self._place.store.tasks.exchange(
                        self._place.pool,
                        self._place.worker_id,
                        number,
                        room=room,
                        prefetch=prefetch,
                        ended=ended,
                        names=names,
                        repeats=False,  # who answers then may have started anew
                    )
            except RedisUnavailable as error:
                if delay == RETRY_DELAY_MIN:
                    log.warning("redis.unavailable", doing="exchange", error=str(error))
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)
                delay = min(2 * delay, RETRY_DELAY_MAX)
                continue
            self._unanswered = False
            return answer

    async def _until_told(self) -> None:
        """Over a new link, wait until the server knows what is here, if it has started anew: it may have lost leases,
        and would call what ended late, and give the same tasks again.
        """
        connection = self._place.store.connection
        while not (link := connection.link_number) or link != self._link:
            run = await connection.server_run()
            if self._told_run and run not in ("", self._told_run):
                await asyncio.sleep(TOLD_STEP)
            elif link == connection.link_number:  # else it may have been another link's answer
                self._link = link

    def _take_unknown(self) -> list[str]:
        """Return the ids of tasks to ask for now, of which this is the only time."""
        asked = dict(islice(self._unknown.items(), NAMES_PER_EXCHANGE))
        for id, why in asked.items():
            del self._unknown[id]
            if why:
                self._cancelled_early[id] = why
        return [id for id in asked if id not in self._runs]

    def _idle_with_mail(self) -> list[str]:
        if not self._mail:
            return []
        self._mail = {name for name in self._mail if self._agents.holds(name)}
        if not self._open:
            return []
        return [name for name in self._mail if self._agents.is_idle(name)][:NAMES_PER_EXCHANGE]

    # -- one task -----------------------------------------------------------------------------------------------

    def _begin(self, tasks: Iterable[ClaimedTask]) -> None:
        """Begin tasks, or have them wait; those that are here already came twice."""
        runs, place, done, early = self._runs, self._host.place, self._done, self._cancelled_early
        for task in tasks:
            id = task.id
            if id in runs:
                continue
            run = runs[id] = Run(place, task, done)
            if early and id in early:
                run.stop(early[id])
            if task.header.agent_name:
                self._host.begin(run)
            elif run.why or not self._open:
                run.stop(GIVE_BACK)
                self._slots.start(run)
            else:
                self._slots.begin(run)
        if runs:
            self._all_recorded.clear()

    def _done(self, run: Run, ending: Ending) -> None:
        """A run has ended: its agent is free, its end is to be handed in."""
        task, outcome, verdict = run.task, ending.outcome, ending.verdict
        name = task.header.agent_name
        delay = ending.delay
        self._ended[task.id] = EndedTask(
            task.id,
            name,
            verdict,
            encode_json(outcome.error if verdict == "back" and not delay else outcome),
            round(1000 * delay) if delay else 0,
            run.duration_ms,
            outcome.tokens,
            audit_line(self._settings, run, ending),
        )
        if self._turns_left:
            self._turns_wait = True
        self._woken.set()
        if name:
            self._slots.dispatch()
        else:
            self._slots.free(run)
        if run.runaway:
            self._on_runaway(name or task.header.agent_type)

    # -- what is recorded ---------------------------------------------------------------------------------------

    def _record(self, ended: Iterable[EndedTask], answer: Exchange) -> None:
        late, kept = {*answer.stale, *self._again}, []
        for task in ended:
            id = task.id
            del self._ended[id]
            run = self._runs.pop(id)
            if id not in late:
                kept.append((run.task, task))
            if task.verdict != "done" or run.why or answer.stale:
                log_end(run, task, late=task.id in answer.stale)
            if run.pinned:
                self._host.finish(run, has_mail=answer.mail.get(task.agent_name, 0) > 0)
        self._recent.add(kept)
        if self._again:
            self._again.difference_update([task.id for task in ended])
        if not self._runs:
            self._all_recorded.set()
