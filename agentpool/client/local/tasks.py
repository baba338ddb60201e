"""The tasks of a local pool: mailboxes of pinned agents, lanes of tasks by type, what runs, and outcomes.

A mailbox is first in, first out. A lane holds the tasks of one tenant for one type, in the order of their turns; the
lanes take turns themselves. One outcome counts for a task, the first.
"""

import asyncio
import contextvars
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import msgspec

from agentpool.client.local.queue import TaskQueue
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
    """A task without an outcome; `run` is set while it runs. `keep`: someone may ask for its outcome later. `nested`:
    another task waits for it.
    """  # fmt: skip

    __slots__ = ("claimed", "future", "keep", "nested", "run")

    def __init__(self, claimed: ClaimedTask, *, keep: bool, nested: bool) -> None:
        self.claimed, self.keep, self.nested = claimed, keep, nested
        self.run: Run | None = None
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class LocalTasks:
    """`host` is set by the pool that puts the parts together; `context` is what agents find in context variables."""

    host: Host

    def __init__(
        self,
        pool: str,
        worker_id: str,
        settings: PoolSettings,
        types: Collection[str],
        registry: LocalRegistry,
        context: contextvars.Context,
    ) -> None:
        self._pool, self._worker_id, self._settings, self._types = pool, worker_id, settings, types
        self._registry, self._context = registry, context
        self._capacity = settings.max_workers * settings.agents_per_worker
        self._tasks: dict[str, _Task] = {}
        self._outcomes: OrderedDict[str, tuple[float, Outcome]] = OrderedDict()
        self._mailboxes: dict[str, TaskQueue] = {}
        self._lanes: OrderedDict[tuple[str, str], TaskQueue] = OrderedDict()
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
        return len(self._tasks) - len(self._running)

    def waiting(self, name: str) -> int:
        """Tasks in the mailbox of an agent."""
        mailbox = self._mailboxes.get(name)
        return len(mailbox) if mailbox else 0

    def submit(self, request: Request, *, keep: bool, nested: bool = False) -> "asyncio.Future[Outcome]":
        """Accept a task; returns what will be its outcome."""
        header = request.header()
        self._check(header, len(bytes(request.envelope.input)))
        claimed = ClaimedTask(request.task_id, header, request.envelope)
        if header.agent_name:
            self._enqueue(self._mailboxes, header.agent_name, request.task_id, 0.0)
        else:
            lane = (header.agent_type, header.tenant)
            self._enqueue(self._lanes, lane, request.task_id, monotonic() + request.later_us / 1e6)
        task = self._tasks[request.task_id] = _Task(claimed, keep=keep, nested=nested)
        if header.agent_name:
            self.dispatch_agent(header.agent_name)
        else:
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
        self._finish(task_id, _ended(TaskStatus.CANCELLED, "TaskCancelled", "cancelled before it ran"))
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
        mailbox = self._mailboxes.pop(agent.agent_id.partition("/")[2], None)
        if agent.task_id:
            outcome = _ended(TaskStatus.TERMINATED, "AgentTerminated", detail)
            self._finish(agent.task_id, msgspec.structs.replace(outcome, process_id=self._worker_id))
        for task_id in mailbox.all() if mailbox else ():
            self._finish(task_id, _ended(TaskStatus.TERMINATED, "AgentTerminated", detail))

    async def close(self, drain_timeout: float, why: str) -> None:
        """Cancel what waits, let what runs finish for so many s, with what it asks of others, then cancel that too."""
        self._cancel_waiting(nested=False)
        try:
            async with asyncio.timeout(drain_timeout):
                while self._carrying:
                    await asyncio.wait(self._carrying)
        except TimeoutError:
            pass
        self._is_closed = True
        self._cancel_waiting(nested=True)
        for task in list(self._tasks.values()):
            if task.run:
                task.run.stop(why)
        while self._carrying:
            await asyncio.wait(self._carrying)

    # -- running ------------------------------------------------------------------------------------------------

    def dispatch_agent(self, name: str) -> None:
        """Begin the next task of an agent, if it is free and has one."""
        mailbox = self._mailboxes.get(name)
        if mailbox and self._registry.is_idle(name) and self.host.agents.is_idle(name):
            task_id = mailbox.pop()
            if not mailbox:
                del self._mailboxes[name]
            self._begin(self._tasks[task_id])

    def dispatch(self) -> None:
        """Begin tasks by type while there are slots."""
        while self._lanes and self.free() > 0:
            key, lane = self._lanes.popitem(last=False)
            task_id = lane.pop()
            if lane:
                self._lanes[key] = lane  # at the end: each lane has its turn
            self._begin(self._tasks[task_id])

    def free(self) -> int:
        """Slots that neither an agent nor a task by type holds; none once the pool is closed."""
        return 0 if self._is_closed else max(0, self._capacity - self._registry.placed - self.by_type)

    def _begin(self, task: _Task) -> None:
        task_id, name = task.claimed.id, task.claimed.header.agent_name
        task.run = Run(self.host.place, task.claimed)
        self._running.add(task_id)
        if name:
            self._registry.begin_task(name, task_id)
        else:
            self.by_type += 1
        # In the context of the pool: the one at hand is that of whoever made room.
        context = self._context.copy()
        carrying = asyncio.create_task(self._carry_out(task, task.run), name=f"task {task_id}", context=context)
        self._carrying.add(carrying)
        carrying.add_done_callback(self._carrying.discard)

    async def _carry_out(self, task: _Task, run: Run) -> None:
        task_id, name = task.claimed.id, task.claimed.header.agent_name
        try:
            self._finish(task_id, await self.host.carry_out(run))
        finally:
            if name:
                self._registry.end_task(name, task_id)
                self.host.finish(run, has_mail=self.waiting(name) > 0)
            else:
                self.by_type -= 1
                self._registry.fill()
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

    def _enqueue(self, queues: dict[Any, TaskQueue], key: Any, task_id: str, rank: float) -> None:
        depth, bound = len(queues.get(key, ())), self._settings.max_queued
        if depth >= bound:
            raise refusal(self._pool, f"tasks for {key if isinstance(key, str) else key[0]}", ["full", depth, bound])
        queues.setdefault(key, TaskQueue()).push(task_id, rank)

    def _take_out(self, claimed: ClaimedTask) -> None:
        """Take a task that waits out of its queue."""
        header = claimed.header
        queues: dict[Any, TaskQueue] = self._mailboxes if header.agent_name else self._lanes
        key = header.agent_name or (header.agent_type, header.tenant)
        queues[key].remove(claimed.id)
        if not queues[key]:
            del queues[key]

    def _cancel_waiting(self, *, nested: bool) -> None:
        """Cancel all tasks that wait; those that other tasks wait for only when told to."""
        for task_id, task in list(self._tasks.items()):
            if not task.run and (nested or not task.nested):
                self.cancel(task_id)

    def _finish(self, task_id: str, outcome: Outcome) -> None:
        task = self._tasks.pop(task_id, None)
        if task is None:
            return  # it has its outcome
        self._running.discard(task_id)
        task.future.set_result(outcome)
        if task.keep or outcome.status is not TaskStatus.SUCCEEDED:
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


def _ended(status: TaskStatus, type: str, message: str) -> Outcome:
    return Outcome(status=status, error=TaskError(type=type, message=message))
