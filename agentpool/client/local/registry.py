"""The pinned agents of a local pool, as Redis would hold them: placed, waiting for room, running, ended.

Implements `agentpool.hosting.Registry`. Everything is synchronous inside, so between two steps of the loop it is whole.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from agentpool.client.requests import Spawn
from agentpool.clock import wall_ms
from agentpool.errors import UnknownAgent
from agentpool.protocol.commands import AgentEnded, AgentReady
from agentpool.protocol.events import EventName
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import AgentRecord, DesiredAgent
from agentpool.protocol.refusals import refusal
from agentpool.protocol.states import AGENT_MOVES, AgentStatus, check_move

__all__ = ["LocalRegistry"]

ENDED_MAX = 10_000
"""Ended agents that are remembered; ending one of them again is quiet."""

IDLE_TOO_LONG = "idle for longer than max_idle_time"

A = AgentStatus
Word = AgentReady | AgentEnded


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry is told of, and tells, the other parts of its pool."""

    room: Callable[[], int]
    """Free slots."""
    check: Callable[[Spawn, int], None]
    """Raise when an agent may not be, for a tenant that has so many."""
    start: Callable[[DesiredAgent], None]
    stop: Callable[[str], None]
    waiting: Callable[[str], int]
    """Tasks in the mailbox of the agent of this name."""
    freed: Callable[[], None]
    """Slots may have become free."""
    fail_tasks: Callable[[AgentRecord, str], None]
    """What runs on an agent, or waits for it, fails for this reason."""
    note: Callable[..., None]
    """Of an event: type, agent id, worker, detail."""


class LocalRegistry:
    """All pinned agents of one pool, by name."""

    def __init__(
        self, pool: str, worker_id: str, types: Collection[str], max_pending: int, surroundings: Surroundings
    ) -> None:
        self._pool, self._worker_id, self._types, self._max_pending = pool, worker_id, types, max_pending
        self._around = surroundings
        self._records: dict[str, AgentRecord] = {}
        self._counts: Counter[str] = Counter()
        self._operations: dict[str, str] = {}
        self._pending: dict[str, None] = {}
        self._ended: dict[str, tuple[int, AgentEnded]] = {}
        self._waiters: dict[str, set[asyncio.Future[Word]]] = {}

    # -- what clients ask ---------------------------------------------------------------------------------------

    @property
    def placed(self) -> int:
        """Agents that hold a slot."""
        return len(self._records) - len(self._pending)

    @property
    def pending(self) -> int:
        """Agents that wait for room."""
        return len(self._pending)

    def all(self) -> list[AgentRecord]:
        """Return the live agents in the order of their names."""
        return [self._records[name] for name in sorted(self._records)]

    def count(self, tenant: str) -> int:
        """Return how many live agents a tenant has."""
        return self._counts[tenant]

    def find(self, name: str) -> AgentRecord | None:
        """Return a live agent."""
        return self._records.get(name)

    def get(self, agent_id: str) -> AgentRecord:
        """Return a live agent; raises `UnknownAgent`."""
        record = self._records.get(split_id(agent_id)[1])
        if record is None:
            raise UnknownAgent(agent_id, hint=" List agents with: await pool.agents()")
        return record

    def is_idle(self, name: str) -> bool:
        """Tell whether a live agent runs and has no task."""
        record = self._records.get(name)
        return record is not None and record.status is A.IDLE

    def ending(self, name: str) -> AgentEnded | None:
        """Return how an agent ended that is remembered."""
        return self._ended.get(name, (0, None))[1]

    def place(self, request: Spawn) -> None:
        """Register an agent and start it, or let it wait for room."""
        name = split_id(request.agent_id)[1]
        if request.agent_type not in self._types:
            raise refusal(self._pool, request.agent_type, ["unknown_type", *self._types])
        if name in self._records:
            raise refusal(self._pool, name, ["duplicate"])
        self._around.check(request, self.count(request.tenant))
        if self._around.room() <= 0 and len(self._pending) >= self._max_pending:
            raise refusal(self._pool, "waiting agents", ["full", len(self._pending), self._max_pending])
        now = wall_ms()
        self._records[name] = AgentRecord(
            agent_id=request.agent_id,
            pool_name=self._pool,
            agent_type=request.agent_type,
            status=A.PENDING,
            tenant=request.tenant,
            project=request.project,
            incarnation=self._ended.pop(name, (0, None))[0],
            max_idle_ms=request.max_idle_ms,
            heartbeat_ms=request.heartbeat_ms,
            spawned_at=now,
            last_used_at=now,
        )
        self._operations[name] = request.operation
        self._counts[request.tenant] += 1
        self._pending[name] = None
        self._note(EventName.AGENT_SPAWNED, name, detail=request.agent_type)
        self.fill()
        if name in self._pending:
            self._note(EventName.AGENT_WAITING, name)

    def expect(self, agent_id: str) -> "asyncio.Future[Word]":
        """Return what will tell that a live agent runs or has ended; give it back with `expect_no_more`."""
        future: asyncio.Future[Word] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(split_id(agent_id)[1], set()).add(future)
        return future

    def expect_no_more(self, agent_id: str, future: "asyncio.Future[Word]") -> None:
        """Nobody waits for this any more."""
        name = split_id(agent_id)[1]
        waiters = self._waiters.get(name, set())
        waiters.discard(future)
        if not waiters:
            self._waiters.pop(name, None)

    def terminate(self, agent_id: str, reason: str) -> None:
        """End an agent; quiet when it has ended, raises `UnknownAgent` when nothing is known of it."""
        name = split_id(agent_id)[1]
        if name in self._records:
            self._end(name, A.TERMINATED, reason)
        elif name not in self._ended:
            raise UnknownAgent(agent_id, hint=" List agents with: await pool.agents()")

    def withdraw(self, agent_id: str, operation: str, *, even_if_it_runs: bool) -> bool:
        """End the agent of a request that nobody waits for any more; True when it runs and was left running."""
        name = split_id(agent_id)[1]
        record = self._records.get(name)
        if record is None or self._operations[name] != operation:
            return False
        if record.status not in (A.PENDING, A.PLACED) and not even_if_it_runs:
            return True
        self._end(name, A.TERMINATED, "withdrawn: the caller stopped waiting")
        return False

    # -- slots --------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Give the room there is to those who wait, longest first."""
        while self._pending and self._around.room() > 0:
            name = next(iter(self._pending))
            record = self._records[name]
            incarnation = record.incarnation + 1
            self._change(name, A.PLACED, incarnation=incarnation, process_id=self._worker_id, placed_at=wall_ms())
            del self._pending[name]
            self._note(EventName.AGENT_PLACED, name)
            self._around.start(DesiredAgent.of(self._records[name]))

    def start_missing(self, is_here: Callable[[str], bool]) -> None:
        """Start the agents that should be here and are not: something went wrong that was no agent's fault."""
        for record in self.all():
            if record.process_id and not is_here(record.agent_id):
                self._around.start(DesiredAgent.of(record))

    def begin_task(self, name: str, task_id: str) -> None:
        """A task begins on an agent."""
        self._change(name, A.ACTIVE, task_id=task_id)

    def end_task(self, name: str, task_id: str) -> None:
        """A task has come to its outcome."""
        record = self._records.get(name)
        if record and record.task_id == task_id:
            self._change(name, A.IDLE, task_id="", last_used_at=wall_ms(), run_count=record.run_count + 1)

    # -- what the host says: see `agentpool.hosting.Registry` ---------------------------------------------------

    async def confirm(self, name: str, incarnation: int) -> int | None:
        record = self._current(name, incarnation)
        if record is None:
            return None
        if record.status is A.PLACED:
            self._change(name, A.IDLE, started_at=wall_ms(), failures=0)
            self._note(EventName.AGENT_STARTED, name)
            self._settle(name, AgentReady(agent_id=record.agent_id, process_id=self._worker_id))
        return self._around.waiting(name)

    async def fail(self, name: str, incarnation: int, *, failures: int, error: str, final: bool) -> bool:
        record = self._current(name, incarnation)
        if record is None:
            return False
        if final:
            self._end(name, A.FAILED, error)
            return True
        had_started = record.status is not A.PLACED
        self._note(EventName.AGENT_BROKE if had_started else EventName.AGENT_START_FAILED, name, error)
        self._change(name, A.PLACED, failures=failures, last_error=error)
        return True

    async def snapshot(self, name: str) -> str:
        """Nothing moves here: an agent starts with nothing."""
        return ""

    async def beat(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._records:
                self._records[name] = msgspec.structs.replace(self._records[name], last_heartbeat=wall_ms())

    async def retire_idle(self, agent_id: str) -> bool:
        name = split_id(agent_id)[1]
        record = self._records.get(name)
        if record and (record.status is not A.IDLE or self._around.waiting(name)):
            return False
        if record:
            self._end(name, A.TERMINATED, IDLE_TOO_LONG)
        return True

    async def idle_for(self, agent_id: str) -> float:
        record = self._records.get(split_id(agent_id)[1])
        return (wall_ms() - record.last_used_at) / 1000 if record else 0.0

    # -- changes ------------------------------------------------------------------------------------------------

    def _current(self, name: str, incarnation: int) -> AgentRecord | None:
        record = self._records.get(name)
        return record if record and record.incarnation == incarnation else None

    def _change(self, name: str, status: AgentStatus, **fields: Any) -> None:
        record = self._records[name]
        check_move(AGENT_MOVES, record.status, status, record.agent_id)
        self._records[name] = msgspec.structs.replace(record, status=status, **fields)

    def _end(self, name: str, status: AgentStatus, detail: str) -> None:
        self._change(name, status, last_error=detail)
        record = self._records.pop(name)
        self._counts[record.tenant] -= 1
        if not self._counts[record.tenant]:
            del self._counts[record.tenant]
        del self._operations[name]
        self._pending.pop(name, None)
        word = AgentEnded(agent_id=record.agent_id, status=str(status), detail=detail)
        self._ended[name] = (record.incarnation, word)
        while len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        self._around.fail_tasks(record, detail)
        ended = EventName.AGENT_FAILED if status is A.FAILED else EventName.AGENT_TERMINATED
        self._around.note(ended, record.agent_id, record.process_id, detail)
        self._settle(name, word)
        if record.process_id:
            self._around.stop(record.agent_id)
        self.fill()
        self._around.freed()

    def _settle(self, name: str, word: Word) -> None:
        for future in self._waiters.get(name, ()):
            if not future.done():
                future.set_result(word)

    def _note(self, type: EventName, name: str, detail: str = "") -> None:
        record = self._records[name]
        self._around.note(type, record.agent_id, record.process_id, detail)
