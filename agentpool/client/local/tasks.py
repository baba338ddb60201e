"""The tasks of a local pool, as clients ask for them: handed in, followed, cancelled, and what becomes of them.

Where a task waits is `waiting.py`, what runs is `running.py`, what is accepted at all is `admission.py`. One outcome
counts for a task, the first.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from agentpool.agent import AgentType, Context
from agentpool.client.backend import Waiter
from agentpool.client.local.admission import Admission
from agentpool.client.local.letters import LocalLetters
from agentpool.client.local.outcomes import Keys, Outcomes
from agentpool.client.local.registry import LocalRegistry
from agentpool.client.local.running import Running
from agentpool.client.local.tenants import LocalTenants
from agentpool.client.local.timers import Timers
from agentpool.client.local.trails import Trail
from agentpool.client.local.waiting import DELAY, LocalTask
from agentpool.client.requests import Request
from agentpool.clock import wall_ms
from agentpool.config import PoolSettings
from agentpool.errors import AgentPoolError, UnknownTask
from agentpool.hosting import Ending
from agentpool.protocol.codec import decode_json, encode_json, new_id
from agentpool.protocol.events import EventName, TaskEvent
from agentpool.protocol.limits import TenantUsage
from agentpool.protocol.records import AgentRecord
from agentpool.protocol.refusals import refusal
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import Outcome, TaskError

__all__ = ["LocalTasks"]

CALLER_WAITS = 1.0
"""Time in s that a cancelled caller waits for its task to end."""
EXPIRE, PROMOTE = "expire", "promote"
"""Timers of a task that has not begun, and of one that waits behind all others."""
FIRST = {TaskStatus.QUEUED: "task.queued", TaskStatus.DELAYED: "task.delayed", TaskStatus.LEASED: "task.started"}


class LocalTasks:
    """`context` is what agents find in context variables; `note(event, agent_id, worker, detail)` notes an event."""

    def __init__(
        self,
        pool: str,
        worker_id: str,
        settings: PoolSettings,
        types: Mapping[str, AgentType],
        labels: Collection[str],
        registry: LocalRegistry,
        context: contextvars.Context,
        note: Callable[..., None],
    ) -> None:
        self._pool, self._worker_id, self._settings, self._registry = pool, worker_id, settings, registry
        self._note = note
        self._timers = Timers(context)
        self._tenants = LocalTenants(settings)
        capacity = settings.max_workers * settings.agents_per_worker
        self.running = Running(registry, self._tenants, self._timers, capacity, context, self._begun, self._ended)
        self._waiting = self.running.waiting
        self._tasks = self._waiting.tasks
        self.admission = Admission(pool, settings, types, labels, self._tenants, self._waiting, registry)
        self._outcomes, self._keys = Outcomes(settings.result_ttl), Keys(settings.key_ttl)
        self.letters = LocalLetters(settings.max_dead)
        self._is_closing = False

    @property
    def queued(self) -> int:
        """Tasks by type that wait for their turn."""
        return len(self._waiting.lanes)

    @property
    def delayed(self) -> int:
        """Tasks that may not begin yet."""
        return self._timers.count(DELAY)

    def mail(self, name: str) -> int:
        """Tasks in the mailbox of an agent."""
        return self._waiting.mail(name)

    # -- handed in ----------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], *, keep: bool = True, nested: bool = False) -> list[str]:
        """Accept tasks that share everything but inputs and keys, all or none; returns their ids, or that of a task
        that has the key already.
        """
        tenant = self.admission.check_target(requests[0])
        if not requests[0].key:
            self.admission.check(requests, tenant)
            for request in requests:
                self._accept(LocalTask(request, tenant, keep=keep, nested=nested))
            self._look(requests[0])
            return [request.task_id for request in requests]
        ids: list[str] = []
        try:
            ids += (self._submit_once(request, tenant, nested=nested) for request in requests)
        except AgentPoolError:
            for request in requests:
                if request.task_id in self._tasks:
                    self.withdraw(request.task_id)
            raise
        self._look(requests[0])
        return ids

    def _submit_once(self, request: Request, tenant: str, *, nested: bool) -> str:
        known = self._keys.find(request.key)
        if known and (known[0] in self._tasks or known[0] in self._outcomes):
            task_id = self.admission.check_key(request, known)
            self._keys.share(request.key)
            return task_id
        self.admission.check([request], tenant)
        self._keys.add(request.key, request.task_id, request.input_digest)
        self._accept(LocalTask(request, tenant, keep=True, nested=nested))
        return request.task_id

    def _accept(self, task: LocalTask) -> None:
        request, timers = task.request, self._timers
        self._waiting.add(task)
        if parent := self._tasks.get(request.parent):
            parent.children.add(task.id)
            self.running.lend(parent)
        if request.delay_ms:
            self._waiting.put_later(task, request.delay_ms / 1000, self._start)
        else:
            self._waiting.put(task)
        if request.expires_ms:
            timers.set(EXPIRE, task.id, request.expires_ms / 1000, lambda: self._expire(task))
        if request.is_batch:
            wait = request.delay_ms / 1000 + self._settings.batch_max_wait
            timers.set(PROMOTE, task.id, wait, lambda: self._promote(task))

    def _look(self, request: Request) -> None:
        """See whether what was just put somewhere can begin."""
        if request.agent_name:
            self.running.dispatch_agent(request.agent_name)
        else:
            self.running.dispatch()

    def _start(self, task: LocalTask) -> None:
        self._waiting.put(task)
        self._look(task.request)

    def _expire(self, task: LocalTask) -> None:
        self._waiting.take_out(task)
        why = "no agent took it in the time it was given"
        self._finish(task, _ended(TaskStatus.EXPIRED, "TaskExpired", why, task.attempts))

    def _promote(self, task: LocalTask) -> None:
        self._waiting.promote(task)
        self.running.dispatch()

    def replay(self, task_id: str) -> str:
        """Submit a dead task anew; returns the id of the new one."""
        dead = self.letters.request(task_id)
        if dead.agent_name and self._registry.find(dead.agent_name) is None:
            raise refusal(self._pool, dead.agent_name, ["unknown_agent"])
        # Nobody waits for it, its key is spent, and its parent has gone on.
        request = msgspec.structs.replace(
            dead, task_id=f"{self._pool}/{new_id()}", options=f"replays={task_id}", delay_ms=0, expires_ms=0, key="",
            parent="", limits="", alike=None,
        )  # fmt: skip
        tenant = self.letters.get(task_id).tenant
        self.letters.purge([task_id])
        self._accept(LocalTask(request, tenant, keep=True, nested=False))
        self._look(request)
        agent_id = f"{self._pool}/{dead.agent_name}" if dead.agent_name else ""
        self._note(EventName.TASK_REPLAYED, agent_id, detail=f"{task_id} as {request.task_id}")
        return request.task_id

    # -- waited for, followed, cancelled ------------------------------------------------------------------------

    async def run(self, request: Request, *, nested: bool = False) -> Outcome:
        """Submit a task and return its outcome; when the caller is gone or its patience is over, it is cancelled,
        unless another asked for it with its key.
        """
        (task_id,) = self.submit([request], keep=False, nested=nested)
        if task_id != request.task_id:
            return await self.outcome(task_id, request.patience)  # another asked for it with the same key
        future = self._tasks[task_id].future
        try:
            await asyncio.wait([future], timeout=request.patience)
        except asyncio.CancelledError:
            if not future.done() and self.withdraw(task_id) != "shared":
                await asyncio.wait([future], timeout=CALLER_WAITS)
            raise
        if not future.done():
            raise request.timed_out(self.withdraw(task_id))
        return future.result()

    def tell(self, task_id: str, waiter: Waiter) -> None:
        """Have a waiter told the outcome of a task, or `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            try:
                waiter.set_result(self._outcomes.get(task_id))
            except UnknownTask as error:
                waiter.set_exception(error)
            return

        def pass_on(done: "asyncio.Future[Outcome]") -> None:
            if not waiter.done():
                waiter.set_result(done.result())

        task.keep = True
        task.future.add_done_callback(pass_on)

    async def outcome(self, task_id: str, timeout: float | None) -> Outcome:
        """Wait for an outcome; raises `TimeoutError` and `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            return self._outcomes.get(task_id)
        task.keep = True
        await asyncio.wait([task.future], timeout=timeout)
        if not task.future.done():
            raise TimeoutError
        return task.future.result()

    def cancel(self, task_id: str) -> str:
        """Cancel a task; returns cancelled, asked (it runs) or finished. Raises `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            self._outcomes.get(task_id)
            return "finished"
        if task.run:
            task.cancelled = True
            task.run.stop("cancelled on request")
            return "asked"
        self._waiting.take_out(task)
        self._finish(task, _ended(TaskStatus.CANCELLED, "TaskCancelled", "cancelled before it ran", task.attempts))
        return "cancelled"

    def withdraw(self, task_id: str) -> str:
        """Cancel a task because who asked for it waits no more; returns what `cancel` does, or shared: it goes on,
        since another asked for it with its key. If not, its key means nothing any more. Raises `UnknownTask`.
        """
        task = self._tasks.get(task_id)
        if task and task.request.key and not self._keys.give_up(task.request.key, task_id):
            return "shared"
        return self.cancel(task_id)

    def info(self, task_id: str) -> dict[str, Any]:
        """Return a task as plain data; raises `UnknownTask`."""
        task = self._tasks.get(task_id)
        if task is None:
            outcome = decode_json(encode_json(self._outcomes.get(task_id)))
            return {"task_id": task_id, "result": None, "attempts": 1, **outcome}
        status = self._status(task)
        return {
            "task_id": task_id,
            "status": str(status),
            "process_id": self._worker_id if task.lease else "",
            "attempts": task.attempts + bool(task.lease),
            "crashes": 0,
        }

    async def follow(self, task_id: str) -> AsyncGenerator[TaskEvent, None]:
        """Yield what the task is now, what it reported and what happens to it, up to its end."""
        if task := self._tasks.get(task_id):
            trail = self._trail(task)
            trail.followed = True
            worker = self._worker_id if task.lease else ""
            yield TaskEvent(FIRST[self._status(task)], task_id, wall_ms(), worker)
        else:
            kept = self._outcomes.trail(task_id)
            trail = kept or Trail()
            trail.end()
        async for event in trail.follow():
            yield event
        yield TaskEvent("task.finished", task_id)

    def report(self, context: Context, progress: Any) -> None:
        """Note what a running task reports; raises `TypeError` for what has no JSON form."""
        data = decode_json(encode_json(progress))
        if task := self._tasks.get(context.task_id or ""):
            self._trail(task).note(TaskEvent("task.progress", task.id, wall_ms(), data=data))

    def _status(self, task: LocalTask) -> TaskStatus:
        if task.lease:
            return TaskStatus.LEASED
        return TaskStatus.DELAYED if self._waiting.is_delayed(task.id) else TaskStatus.QUEUED

    @staticmethod
    def _trail(task: LocalTask) -> Trail:
        task.trail = task.trail or Trail()
        return task.trail

    @staticmethod
    def _tell(task: LocalTask, type: str, detail: str) -> None:
        """Tell those who follow a task what became of it."""
        if task.trail and task.trail.followed:
            task.trail.note(TaskEvent(type, task.id, wall_ms(), detail))

    # -- what becomes of one ------------------------------------------------------------------------------------

    def _begun(self, task: LocalTask) -> None:
        self._timers.cancel(EXPIRE, task.id)
        self._tell(task, "task.started", self._worker_id)

    def _ended(self, task: LocalTask, ending: Ending) -> None:
        """A run has ended; its agent is free and its tenant's account settled."""
        self.admission.rate.count()
        outcome, verdict = ending.outcome, ending.verdict
        again = verdict in ("retry", "back")
        if again and task.cancelled:
            begun = task.attempts + (verdict == "retry")
            why = _ended(TaskStatus.CANCELLED, "TaskCancelled", "cancelled on request", begun)
            self._finish(task, msgspec.structs.replace(why, process_id=self._worker_id))
        elif again and not self._is_closing:
            self._try_again(task, ending)
        else:
            if verdict in ("dead", "unstarted"):
                self._count(task, ending)
                self.letters.bury(task, outcome)
                self._note(EventName.TASK_DEAD, outcome.agent_id, detail=task.id)
            self._finish(task, outcome)

    def _try_again(self, task: LocalTask, ending: Ending) -> None:
        self._count(task, ending)
        if ending.delay:
            self._waiting.put_later(task, ending.delay, self._start)
        else:
            self._waiting.put(task, in_its_place=True)
        told = ending.outcome if ending.verdict == "retry" or ending.delay else ending.outcome.error
        self._tell(task, "task.retried" if ending.verdict == "retry" else "task.given_back", encode_json(told).decode())

    @staticmethod
    def _count(task: LocalTask, ending: Ending) -> None:
        """Count an attempt that failed, or a start of its agent, and keep what went wrong."""
        what = msgspec.Raw(encode_json(ending.outcome))
        if ending.verdict in ("dead", "retry"):
            task.attempts += 1
            task.errors[str(task.attempts)] = what
        elif ending.verdict == "unstarted" or ending.delay:
            task.starts += 1
            task.errors[f"start {task.starts}"] = what

    def fail_tasks(self, agent: AgentRecord, detail: str) -> None:
        """An agent has ended: what runs on it or waits for it fails."""
        name = agent.agent_id.partition("/")[2]
        for waiting in self._waiting.of_agent(name):
            self._waiting.take_out(waiting)
            self._finish(waiting, _ended(TaskStatus.TERMINATED, "AgentTerminated", detail, waiting.attempts))
        if task := self._tasks.get(agent.task_id):
            self.running.end_lease(task)
            why = _ended(TaskStatus.TERMINATED, "AgentTerminated", detail, task.attempts + 1)
            self._finish(task, msgspec.structs.replace(why, process_id=self._worker_id))

    def _finish(self, task: LocalTask, outcome: Outcome) -> None:
        """Record the outcome of a task that waits nowhere any more."""
        request = task.request
        self._waiting.forget(task)
        for kind in (EXPIRE, PROMOTE):
            self._timers.cancel(kind, task.id)
        if request.key:
            self._keys.task_ended(request.key, task.id)
        if parent := self._tasks.get(request.parent):
            parent.children.discard(task.id)
            if not parent.children:
                self.running.take_back(parent)
        if task.trail:
            task.trail.end()
        if task.keep or outcome.status is not TaskStatus.SUCCEEDED:
            self._outcomes.keep(task.id, outcome, task.trail)
        self._outcomes.forget()
        task.future.set_result(outcome)

    # -- tenants ------------------------------------------------------------------------------------------------

    def tenant_names(self) -> list[str]:
        """Return the tenants that have limits of their own, or hold, run or wait for anything, sorted."""
        lanes = self._waiting.lanes
        known = self._tenants.names() | lanes.tenants() | set(lanes.fair.served())
        return sorted(known | {record.tenant for record in self._registry.all()})

    def tenant(self, name: str) -> TenantUsage:
        """Return what one tenant uses."""
        queued = self._waiting.lanes.count(name)
        return self._tenants.usage(name, agents=self._registry.count(name), queued=queued)

    def limit_tenant(self, name: str, limits: Mapping[str, float | None]) -> None:
        """Set limits of a tenant live."""
        words = self._tenants.limit(name, limits)
        self._note(EventName.TENANT_LIMITED, detail=f"{name} {words}")
        self.running.let_go(self._tenants.of(name))
        self.running.dispatch()

    # -- the end ------------------------------------------------------------------------------------------------

    async def close(self, drain_timeout: float, why: str) -> None:
        """Cancel what waits, let what runs finish for so many s, with what it asks of others, then cancel that too."""
        self._is_closing = True
        self._cancel_waiting(nested=False)
        try:
            async with asyncio.timeout(drain_timeout):
                await self.running.ended()
        except TimeoutError:
            pass
        self.running.stop(why)
        self._cancel_waiting(nested=True)
        await self.running.ended()
        self._timers.close()

    def _cancel_waiting(self, *, nested: bool) -> None:
        """Cancel all tasks that wait; those that other tasks wait for only when told to."""
        for task in list(self._tasks.values()):
            if not task.run and (nested or not task.nested):
                self.cancel(task.id)


def _ended(status: TaskStatus, type: str, message: str, attempts: int) -> Outcome:
    return Outcome(status=status, error=TaskError(type=type, message=message), attempts=attempts)
