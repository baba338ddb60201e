"""Tasks on Redis: submitted, waited for, and cancelled when nobody waits any more."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from agentpool.client.cleanup import Cleanup
from agentpool.client.recovering import UNKNOWN
from agentpool.client.replies import Replies
from agentpool.client.requests import Request
from agentpool.client.submitting import Gathering
from agentpool.errors import AgentPoolError, PoolClosed, RedisUnavailable, UnknownTask
from agentpool.protocol.events import TaskEvent
from agentpool.protocol.states import OUTCOMES
from agentpool.protocol.tasks import Outcome, TaskHeader
from agentpool.store import Store
from agentpool.store.tasks import SubmitOptions, TaskGroup

__all__ = ["RedisTasks"]


_FIRST = {"queued": "task.queued", "delayed": "task.delayed", "leased": "task.started"}
_ENDS = frozenset(f"task.{status}" for status in OUTCOMES)


class RedisTasks:
    """Carries tasks out on a store; each method is what `Backend` says of it."""

    def __init__(self, store: Store, replies: Replies, cleanup: Cleanup) -> None:
        self._store, self._replies, self._cleanup = store, replies, cleanup
        self._gathering = Gathering(self._send_groups, store.connection.timeout)

    async def submit(self, requests: Sequence[Request]) -> list[str]:
        """Return when Redis has the tasks, with their ids; cancelling this, or an error, withdraws those that it has by
        then, but not what a key named already. When Redis is away nothing with a key is withdrawn: who asks for it
        again shall find it.
        """
        self._replies.listen()
        try:
            # Within, as what fails is withdrawn.
            try:
                ids = await self._send(requests)
            except UNKNOWN as error:
                ids = await self._replies.recovery.insist_after(error, lambda: self._send(requests))
        except asyncio.CancelledError:
            await self._cleanup.run(lambda: self._withdraw(requests))
            raise
        except AgentPoolError as error:
            is_away = isinstance(error, RedisUnavailable)
            if (is_away and not requests[0].key) or (len(requests) > 1 and not is_away):
                self._cleanup.start(lambda: self._withdraw(requests))
            raise
        if requests[0].key:
            # What a key named already is another's to ask for again.
            self._replies.recovery.keep([one for one, id in zip(requests, ids, strict=True) if one.task_id == id])
        else:
            self._replies.recovery.keep(requests)
            self._replies.sent(ids)
        return ids

    async def hand_in(self, request: Request) -> None:
        """Submit a task; what Redis knows already it passes over."""
        await self._send([request])

    async def run(self, request: Request) -> Outcome:
        """Submit and wait for the outcome; a cancellation, a timeout or the client's end cancels the task, but not if
        another asked for it with its key.
        """
        future = self._replies.task(request.task_id)
        try:
            try:
                (task_id,) = await self._send([request])
            except UNKNOWN as error:
                (task_id,) = await self._replies.recovery.insist_after(error, lambda: self._send([request]))
            if task_id != request.task_id:
                return await self.outcome(task_id, request.patience)  # another asked for it with the same key
            self._replies.recovery.wait_for(task_id, request)
            self._replies.accept(task_id)
            return await self._wait_or_stop(request, future)
        except (asyncio.CancelledError, PoolClosed):
            with self._replies.withdrawing():
                await self._cleanup.run(lambda: self._store.tasks.withdraw(request.task_id))
            raise
        except RedisUnavailable:
            self._cleanup.start(lambda: self._store.tasks.withdraw(request.task_id))
            raise
        finally:
            self._replies.recovery.leave(request.task_id)
            self._replies.leave(request.task_id, future)

    def outcome(self, task_id: str, timeout: float | None) -> Coroutine[Any, Any, Outcome]:
        """Wait for a task that Redis may have or not; raises `TimeoutError` or `UnknownTask`."""
        doing = "the result of task {} was waited for; the task goes on"
        return self._replies.wait(self._replies.watch(task_id), timeout, doing, task_id)

    async def follow(self, task_id: str) -> AsyncGenerator[TaskEvent, None]:
        """Yield what the task is now, what it reported and what happens to it, up to its end."""
        status, worker = await self._store.tasks.follow(task_id)
        if status != "finished":
            yield TaskEvent(_FIRST[status], task_id, detail=worker)
        async with contextlib.aclosing(self._store.tasks.trail(task_id)) as trail:
            async for fields in trail:
                if fields is None:
                    if await self._store.tasks.settled([task_id]):
                        break
                elif fields["type"].startswith("task.finished") or fields["type"] in _ENDS:
                    break
                else:
                    yield _event(task_id, fields)
        yield TaskEvent("task.finished", task_id)

    def _send(self, requests: Sequence[Request]) -> Coroutine[Any, Any, list[str]]:
        """Send tasks, and see it through though the caller is cancelled: only then can they be cancelled in Redis."""
        first = requests[0]
        if len(requests) == 1 and not first.key:
            return self._gathering.submit(first)
        return self._send_to_the_end(self._send_with_keys(requests) if first.key else self._send_alike(requests))

    async def _send_to_the_end(self, sends: Coroutine[Any, Any, list[str]]) -> list[str]:
        sending = asyncio.ensure_future(sends)
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=self._store.connection.timeout)
            sending.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it
            raise

    async def _send_with_keys(self, requests: Sequence[Request]) -> list[str]:
        ids = []
        for request in requests:
            header, options = request.header(self._replies.reply_to), _options(request)
            id = await self._store.tasks.submit(
                request.task_id, header, request.envelope, options, timeout=request.timeout
            )
            ids.append(id)
        return ids

    async def _send_alike(self, requests: Sequence[Request]) -> list[str]:
        """Hand in tasks that share everything but their inputs."""
        first = requests[0]
        header, options = first.header(self._replies.reply_to), _options(first)
        tasks = [(request.task_id, request.envelope) for request in requests]
        await self._store.tasks.submit_many(tasks, header, options, timeout=first.timeout)
        return [request.task_id for request in requests]

    async def _send_groups(self, groups: Sequence[Sequence[Request]]) -> list[AgentPoolError | None]:
        """Hand in tasks that share everything but their inputs; says of each group why it was refused, if it was."""
        reply_to, timeout = self._replies.reply_to, groups[0][0].timeout
        answers = await self._store.tasks.submit_groups(
            [
                TaskGroup(
                    *_shared(group[0].alike or group[0], reply_to),
                    [(request.task_id, request.envelope) for request in group],
                )
                for group in groups
            ],
            timeout=timeout,
        )
        return [answer if isinstance(answer, AgentPoolError) else None for answer in answers]

    async def _withdraw(self, requests: Sequence[Request]) -> None:
        for request in requests:
            with contextlib.suppress(UnknownTask):
                await self._store.tasks.withdraw(request.task_id)

    async def _wait_or_stop(self, request: Request, future: "asyncio.Future[Outcome]") -> Outcome:
        try:
            return await self._replies.wait(
                future, request.patience, "task {} was not finished; it was cancelled", request.task_id
            )
        except TimeoutError:
            return await self._stop(request)

    async def _stop(self, request: Request) -> Outcome:
        """Cancel a task whose time is over; returns its outcome if it finished in this very moment."""
        answer = await self._store.tasks.withdraw(request.task_id)
        if answer == "finished" and (outcome := await self._store.tasks.read(request.task_id)):
            return outcome
        raise request.timed_out(answer) from None


@lru_cache(maxsize=1024)
def _shared(alike: Request, reply_to: str) -> tuple[TaskHeader, SubmitOptions]:
    """Return what a group shares, as the store takes it."""
    return alike.header(reply_to), _options(alike)


def _options(request: Request) -> SubmitOptions:
    return SubmitOptions(
        delay=request.delay_ms,
        expires=request.expires_ms,
        batch=request.is_batch,
        key=request.key,
        input=request.input_digest,
        parent=request.parent,
        sticky=request.sticky,
        limits=request.limits,
    )


def _event(task_id: str, fields: dict[str, str]) -> TaskEvent:
    kind, detail = fields["type"], fields.get("detail", "")
    if kind == "task.progress":
        return TaskEvent(kind, task_id, int(fields["at"]), data=msgspec.json.decode(detail))
    return TaskEvent(kind, task_id, int(fields["at"]), detail)
