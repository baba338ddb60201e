"""The tasks of a local pool: mailboxes of pinned agents, lanes of tasks by type, what runs, and outcomes.

A mailbox is first in, first out. A lane holds the tasks of one tenant for one type, in the order of their turns; the
lanes take turns themselves. One outcome counts for a task, the first.
"""

import asyncio
import heapq
from collections import OrderedDict, deque
from collections.abc import Collection
from itertools import count
from typing import Any

import msgspec

from agentpool.client.local.registry import LocalRegistry
from agentpool.client.requests import Request
from agentpool.clock import monotonic
from agentpool.config import PoolSettings
from agentpool.errors import UnknownTask
from agentpool.hosting import Host, Run
from agentpool.protocol.records import AgentRecord, ClaimedTask, Outcome, TaskError, TaskHeader
from agentpool.protocol.refusals import refusal
from agentpool.protocol.states import TaskStatus

__all__ = ["LocalTasks"]

OUTCOMES_MAX = 100_000
"""Outcomes kept for those who ask later; the oldest are forgotten first."""


class _Task:
    """A task without an outcome; `run` is set while it runs. `keep`: someone may ask for its outcome later."""

    __slots__ = ("claimed", "future", "keep", "run")

    def __init__(self, claimed: ClaimedTask, keep: bool) -> None:
        self.claimed, self.keep = claimed, keep
        self.run: Run | None = None
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class LocalTasks:
    """`free()` slots are for tasks by type; pinned agents have theirs."""

    def __init__(
        self, pool: str, worker_id: str, settings: PoolSettings, types: Collection[str], registry: LocalRegistry
    ) -> None:
        self._pool, self._worker_id, self._settings, self._types = pool, worker_id, settings, types
        self._registry = registry
        self.host: Host
        self._tasks: dict[str, _Task] = {}
        self._outcomes: OrderedDict[str, tuple[float, Outcome]] = OrderedDict()
        self._mailboxes: dict[str, deque[str]] = {}
        self._lanes: OrderedDict[tuple[str, str], list[tuple[float, int, str]]] = OrderedDict()
        self._order = count()
        self._carrying: set[asyncio.Task[None]] = set()
        self._running: set[str] = set()
        self._is_closed = False
        self.by_type = 0
        """Tasks by type that run: each holds a slot."""

    # -- what clients ask ---------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Tasks that run."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Tasks that wait."""
        return len(self._tasks) - self.running

    def waiting(self, name: str) -> int:
        """Tasks in the mailbox of an agent."""
        return len(self._mailboxes.get(name, ()))

    def submit(self, request: Request, *, keep: bool) -> "asyncio.Future[Outcome]":
        """Accept a task; returns what will be its outcome."""
        header, size = request.header(), len(bytes(request.envelope.input))
        self._check(header, size)
        queue = self._queue_of(header)
        if len(queue) >= self._settings.max_queued:
            what = f"tasks for {header.agent_name or header.agent_type}"
            raise refusal(self._pool, what, ["full", len(queue), self._settings.max_queued])
        task = self._tasks[request.task_id] = _Task(ClaimedTask(request.task_id, header, request.envelope), keep)
        if isinstance(queue, deque):
            queue.append(request.task_id)
        else:
            heapq.heappush(queue, (monotonic() + request.later_us / 1e6, next(self._order), request.task_id))
        self.dispatch()
        return task.future

    async def outcome(self, task_id: str, timeout: float | None) -> Outcome:
        """Wait for an outcome; raises `TimeoutError` and `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            return self._kept(task_id)
        task.keep = True
        await asyncio.wait([task.future], timeout=timeout)
        if not task.future.done():
            raise TimeoutError
        return task.future.result()

    def cancel(self, task_id: str, why: str = "cancelled on request") -> str:
        """Cancel a task; returns cancelled, asked (it runs) or finished. Raises `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            self._kept(task_id)
            return "finished"
        if task.run:
            task.run.stop(why)
            return "asked"
        self._take_out(task.claimed)
        self._finish(task_id, _stopped(TaskStatus.CANCELLED, "TaskCancelled", "cancelled before it ran"))
        return "cancelled"

    def info(self, task_id: str) -> dict[str, Any]:
        """Return a task as plain data; raises `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            outcome = msgspec.json.decode(msgspec.json.encode(self._kept(task_id)))
            return {"task_id": task_id, "result": None, **outcome}
        status, worker = (TaskStatus.LEASED, self._worker_id) if task.run else (TaskStatus.QUEUED, "")
        return {"task_id": task_id, "status": str(status), "process_id": worker}

    def fail_tasks(self, agent: AgentRecord, detail: str) -> None:
        """An agent has ended: what runs on it or waits for it fails."""
        name = agent.agent_id.partition("/")[2]
        outcome = _stopped(TaskStatus.TERMINATED, "AgentTerminated", detail)
        for task_id in (agent.task_id, *self._mailboxes.pop(name, ())):
            if task_id in self._tasks:
                self._finish(task_id, outcome)

    async def close(self, drain_timeout: float, why: str) -> None:
        """Cancel what waits, let what runs finish for so many s, then cancel that too."""
        self._is_closed = True
        for task_id in [id for id, task in self._tasks.items() if not task.run]:
            self.cancel(task_id)
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=drain_timeout)
        for task in list(self._tasks.values()):
            if task.run:
                task.run.stop(why)
        while self._carrying:
            await asyncio.wait(self._carrying)

    # -- running ------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Begin whatever has an agent that is free, or a slot."""
        for name in [
            name for name in self._mailboxes if self._registry.is_idle(name) and self.host.agents.is_idle(name)
        ]:
            mailbox = self._mailboxes[name]
            self._begin(self._tasks[mailbox.popleft()])
            if not mailbox:
                del self._mailboxes[name]
        while self._lanes and self.free() > 0:
            key, lane = self._lanes.popitem(last=False)
            task_id = heapq.heappop(lane)[2]
            if lane:
                self._lanes[key] = lane  # at the end: each lane has its turn
            self._begin(self._tasks[task_id])

    def free(self) -> int:
        """Slots that neither an agent nor a task by type holds; none once the pool closes."""
        if self._is_closed:
            return 0
        capacity = self._settings.max_workers * self._settings.agents_per_worker
        return max(0, capacity - self._registry.placed - self.by_type)

    def _begin(self, task: _Task) -> None:
        name = task.claimed.header.agent_name
        task.run = Run(self.host.place, task.claimed)
        self._running.add(task.claimed.id)
        if name:
            self._registry.begin_task(name, task.claimed.id)
        else:
            self.by_type += 1
        carrying = asyncio.create_task(self._carry_out(task, task.run), name=f"task {task.claimed.id}")
        self._carrying.add(carrying)
        carrying.add_done_callback(self._carrying.discard)

    async def _carry_out(self, task: _Task, run: Run) -> None:
        task_id, name = task.claimed.id, task.claimed.header.agent_name
        try:
            self._finish(task_id, await self.host.carry_out(run))
        finally:
            if name:
                self._registry.end_task(name, task_id)
            else:
                self.by_type -= 1
                self._registry.fill()
            self.host.finish(run, has_mail=self.waiting(name) > 0)
            self.dispatch()

    # -- queues and outcomes ------------------------------------------------------------------------------------

    def _check(self, header: TaskHeader, size: int) -> None:
        name = header.agent_name
        if name and self._registry.find(name) is None:
            ended = self._registry.ending(name)
            if ended is None:
                raise refusal(self._pool, name, ["unknown_agent"])
            raise refusal(self._pool, name, ["ended", f"{ended.status} {ended.detail}"])
        if not name and header.agent_type not in self._types:
            raise refusal(self._pool, header.agent_type, ["unknown_type", *self._types])
        if size > self._settings.max_input_bytes:
            raise refusal(self._pool, "", ["too_large", size, self._settings.max_input_bytes])

    def _queue_of(self, header: TaskHeader) -> "deque[str] | list[tuple[float, int, str]]":
        if header.agent_name:
            return self._mailboxes.setdefault(header.agent_name, deque())
        return self._lanes.setdefault((header.agent_type, header.tenant), [])

    def _take_out(self, claimed: ClaimedTask) -> None:
        """Take a task that waits out of its queue."""
        header = claimed.header
        if header.agent_name:
            mailbox = self._mailboxes[header.agent_name]
            mailbox.remove(claimed.id)
            if not mailbox:
                del self._mailboxes[header.agent_name]
            return
        key = (header.agent_type, header.tenant)
        lane = [entry for entry in self._lanes[key] if entry[2] != claimed.id]
        heapq.heapify(lane)
        if lane:
            self._lanes[key] = lane
        else:
            del self._lanes[key]

    def _finish(self, task_id: str, outcome: Outcome) -> None:
        task = self._tasks.pop(task_id, None)
        if task is None:
            return  # it has its outcome
        self._running.discard(task_id)
        task.future.set_result(outcome)
        if task.keep:
            self._outcomes[task_id] = (monotonic() + self._settings.result_ttl, outcome)
        self._forget()

    def _forget(self) -> None:
        while self._outcomes:
            deadline, _ = next(iter(self._outcomes.values()))
            if deadline > monotonic() and len(self._outcomes) <= OUTCOMES_MAX:
                return
            self._outcomes.popitem(last=False)

    def _kept(self, task_id: str) -> Outcome:
        self._forget()
        if task_id not in self._outcomes:
            raise UnknownTask(task_id, hint=" Outcomes are kept for the pool's result_ttl.")
        return self._outcomes[task_id][1]


def _stopped(status: TaskStatus, type: str, message: str) -> Outcome:
    return Outcome(status=status, error=TaskError(type=type, message=message))
