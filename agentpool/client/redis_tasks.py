"""Tasks on Redis: submitted, waited for, and cancelled when nobody waits any more."""

import asyncio
import contextlib
from collections.abc import Sequence

from agentpool.client.cleanup import Cleanup
from agentpool.client.replies import Answer, Replies, Waiter
from agentpool.client.requests import Request
from agentpool.errors import AgentPoolError, PoolClosed, RedisUnavailable, UnknownTask
from agentpool.protocol.records import Outcome
from agentpool.store import Store

__all__ = ["RedisTasks"]


class RedisTasks:
    """Carries tasks out on a store; each method is what `Backend` says of it."""

    def __init__(self, store: Store, replies: Replies, cleanup: Cleanup) -> None:
        self._store, self._replies, self._cleanup = store, replies, cleanup

    async def submit(self, requests: Sequence[Request]) -> None:
        """Return when Redis has the tasks; cancelling this, or an error, withdraws those that it has by then."""
        try:
            await self._send(requests)
        except asyncio.CancelledError:
            await self._cleanup.run(lambda: self._withdraw(requests))
            raise
        except AgentPoolError as error:
            if len(requests) > 1 or isinstance(error, RedisUnavailable):
                self._cleanup.start(lambda: self._withdraw(requests))
            raise

    async def run(self, request: Request) -> Outcome:
        """Submit and wait for the outcome; a cancellation, a timeout or the client's end cancels the task."""
        with self._replies.task(request.task_id) as waiter:
            try:
                await self._send([request])
                self._replies.accept(waiter)
                outcome = await self._wait_or_stop(request, waiter)
            except (asyncio.CancelledError, PoolClosed):
                await self._cleanup.run(lambda: self._store.tasks.cancel(request.task_id))
                raise
            except RedisUnavailable:
                self._cleanup.start(lambda: self._store.tasks.cancel(request.task_id))
                raise
        assert isinstance(outcome, Outcome)
        return outcome

    async def outcome(self, task_id: str, timeout: float | None) -> Outcome:
        """Wait for a task that Redis may have or not; raises `TimeoutError` or `UnknownTask`."""
        with self._replies.task(task_id) as waiter:
            self._replies.accept(waiter, look=True)
            outcome = await self._replies.wait(
                waiter, timeout, f"the result of task {task_id} was waited for; the task goes on"
            )
        assert isinstance(outcome, Outcome)
        return outcome

    async def _send(self, requests: Sequence[Request]) -> None:
        """Send tasks, and see it through though the caller is cancelled: only then can they be cancelled in Redis."""
        first = requests[0]
        sending = asyncio.ensure_future(
            self._store.tasks.submit_many(
                [(request.task_id, request.envelope) for request in requests],
                first.header(self._replies.reply_to),
                later_us=first.later_us,
                timeout=first.timeout,
            )
        )
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=self._store.connection.timeout)
            raise

    async def _withdraw(self, requests: Sequence[Request]) -> None:
        for request in requests:
            with contextlib.suppress(UnknownTask):
                await self._store.tasks.cancel(request.task_id)

    async def _wait_or_stop(self, request: Request, waiter: Waiter) -> Answer:
        try:
            return await self._replies.wait(
                waiter, request.patience, f"task {request.task_id} was not finished; it was cancelled"
            )
        except TimeoutError:
            return await self._stop(request)

    async def _stop(self, request: Request) -> Outcome:
        """Cancel a task whose time is over; returns its outcome if it finished in this very moment."""
        answer = await self._store.tasks.cancel(request.task_id)
        if answer == "finished" and (outcome := await self._store.tasks.read(request.task_id)):
            return outcome
        raise request.timed_out(while_it_ran=answer == "asked") from None
