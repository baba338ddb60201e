"""Many callers that submit one task each share calls.

Tasks that are alike but for their inputs go together when they come in one turn of the loop, or while a call is under
way: the more there is to do, the more go at once, and a lone task goes at once by itself. Of tasks that are not alike a
few calls are under way together; more of them would only wait in the server, while here others join what waits.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence

from agentpool.client.requests import Request
from agentpool.errors import AgentPoolError, RedisUnavailable

__all__ = ["CALLS_AT_ONCE", "Gathering"]

CALLS_AT_ONCE = 2
TURN_S = 0.02
"""How long a call waits for its turn; where Redis is slow or away, all shall begin to wait for it."""

Send = Callable[[Sequence[Request]], Awaitable[object]]


class _Batch:
    """Requests of one call, each with the future of who waits for it."""

    def __init__(self) -> None:
        self.requests: list[tuple[Request, asyncio.Future[None]]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self, error: Exception | None) -> None:
        """Tell all that it was accepted, or why not."""
        for _, accepted in self.requests:
            _tell(accepted, error)


class Gathering:
    """`send` hands in requests that are alike, all or none, and may be repeated for the same ones.

    Who is cancelled waits until the call that its request is part of has ended, `patience` s at most: only then can
    the task be cancelled.
    """

    def __init__(self, send: Send, patience: float) -> None:
        self._send, self._patience = send, patience
        self._next: dict[Hashable, _Batch] = {}
        """What goes with the next call, by what the requests have in common."""
        self._senders: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._line: deque[asyncio.Future[None]] = deque()
        """Of those calls that wait for their turn."""

    async def submit(self, request: Request) -> None:
        """Return when the task is accepted; raises what `send` does for it alone."""
        like = _common(request)
        batch = self._next.get(like)
        if batch is None:
            batch = self._next[like] = _Batch()
            sender = asyncio.create_task(self._send_batches(like), name="client.submit")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.requests.append((request, accepted))
        try:
            await accepted
        except asyncio.CancelledError:
            await asyncio.wait([batch.ended], timeout=self._patience)
            raise

    async def _send_batches(self, like: Hashable) -> None:
        """Send what waits, then what came meanwhile, until nothing does."""
        try:
            while self._next[like].requests:
                await self._wait_for_turn()
                batch, self._next[like] = self._next[like], _Batch()
                self._under_way += 1
                try:
                    await self._send_batch(batch)
                finally:
                    self._pass_turn_on()
                batch.ended.set_result(None)
        finally:
            del self._next[like]

    async def _wait_for_turn(self) -> None:
        if self._under_way >= CALLS_AT_ONCE:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            await asyncio.wait([turn], timeout=TURN_S)
            turn.cancel()

    def _pass_turn_on(self) -> None:
        self._under_way -= 1
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _send_batch(self, batch: _Batch) -> None:
        # Those who were cancelled before it was sent are left out.
        batch.requests = [(request, accepted) for request, accepted in batch.requests if not accepted.done()]
        try:
            if batch.requests:
                await self._send([request for request, _ in batch.requests])
        except AgentPoolError as error:
            if len(batch.requests) == 1 or isinstance(error, RedisUnavailable):
                batch.tell(error)
                return
            # Together they were refused: each is asked for by itself, and what was accepted is passed over.
            for request, accepted in batch.requests:
                await self._send_one(request, accepted)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is theirs)
            batch.tell(error)
        else:
            batch.tell(None)

    async def _send_one(self, request: Request, accepted: "asyncio.Future[None]") -> None:
        try:
            await self._send([request])
        except Exception as error:  # noqa: BLE001 (see above; the others shall be asked for, too)
            _tell(accepted, error)
        else:
            _tell(accepted, None)


def _tell(accepted: "asyncio.Future[None]", error: Exception | None) -> None:
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
