"""Many callers that submit one task each share calls.

While a call is under way, tasks that are alike but for their inputs wait for it, and then go together: the more there
is to do, the more go at once, and a lone task goes at once by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from agentpool.client.requests import Request
from agentpool.errors import AgentPoolError, RedisUnavailable

__all__ = ["Gathering"]

Send = Callable[[list[Request]], Awaitable[object]]


class Gathering:
    """`send` hands in requests that are alike, all or none, and may be repeated for the same ones."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: dict[Hashable, list[tuple[Request, asyncio.Future[None]]]] = {}
        """Those that wait for the call under way, by what they have in common."""
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, request: Request) -> None:
        """Return when the task is accepted; raises what `send` does for it alone."""
        like = _common(request)
        if like in self._waiting:
            accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[like].append((request, accepted))
            await accepted
            return
        self._waiting[like] = []
        try:
            await self._send([request])
        finally:
            self._go_on(like)

    def _go_on(self, like: Hashable) -> None:
        """A call has ended: the next one takes all that wait."""
        waiting = self._waiting.pop(like)
        if waiting:
            self._waiting[like] = []
            call = asyncio.create_task(self._send_all(like, waiting), name="client.submit")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _send_all(self, like: Hashable, waiting: list[tuple[Request, "asyncio.Future[None]"]]) -> None:
        try:
            await self._send([request for request, _ in waiting])
        except RedisUnavailable as error:
            for _, accepted in waiting:
                _tell(accepted, error)
        except AgentPoolError:
            # Together they were refused: each is asked for by itself, and what was accepted is passed over.
            for request, accepted in waiting:
                await self._send_one(request, accepted)
        except BaseException as error:
            for _, accepted in waiting:
                _tell(accepted, error)
            raise
        else:
            for _, accepted in waiting:
                _tell(accepted, None)
        finally:
            self._go_on(like)

    async def _send_one(self, request: Request, accepted: "asyncio.Future[None]") -> None:
        try:
            await self._send([request])
        except AgentPoolError as error:
            _tell(accepted, error)
        else:
            _tell(accepted, None)


def _tell(accepted: "asyncio.Future[None]", error: BaseException | None) -> None:
    if accepted.done():
        return
    if error is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(error)


def _common(request: Request) -> Hashable:
    """Return what tasks of one call have in common: everything but id, envelope and time for the call."""
    pool = request.task_id.partition("/")[0]
    return (
        pool, request.agent_name, request.agent_type, request.tenant, request.lane, request.options, request.priority,
        request.delay_ms, request.expires_ms, request.parent, request.sticky, request.limits, request.timeout,
    )  # fmt: skip
