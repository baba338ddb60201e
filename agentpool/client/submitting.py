"""Many callers that submit one task each share calls.

What comes in one turn of the loop, or while a call is under way, goes with the next call: the more there is to do, the
more goes at once, and a lone task goes at once by itself. Tasks that are alike but for their inputs are a group of the
call, which is accepted or refused by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence

from agentpool.client.requests import Request
from agentpool.errors import AgentPoolError, RedisUnavailable
from agentpool.store.tasks import BYTES_PER_CALL, GROUPS_PER_CALL, TASKS_PER_CALL

__all__ = ["CALLS_AT_ONCE", "Gathering"]

CALLS_AT_ONCE = 2
"""Of one line, when there is enough for a full call while another is under way."""
TURN_S = 0.02
"""How long what is asked waits for its turn, twice as long with each call that is under way: where Redis is slow or
away, all shall begin to wait for it.
"""
LATER_MAX = 5

Send = Callable[[Sequence[Sequence[Request]]], Awaitable[Sequence[AgentPoolError | None]]]


class _Asked:
    """A request, who waits for it, and once it was sent what tells that its call has ended."""

    __slots__ = ("accepted", "call", "request")

    def __init__(self, request: Request, accepted: "asyncio.Future[None]") -> None:
        self.request, self.accepted = request, accepted
        self.call: asyncio.Task[None] | None = None

    def tell(self, error: Exception | None) -> None:
        if self.accepted.done():
            return  # cancelled
        if error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(error)


class _Line:
    """What waits for the calls of one pool, with one time that a call may take."""

    def __init__(self, send: Send, on_idle: Callable[[], object]) -> None:
        self._send, self._on_idle = send, on_idle
        self._loop = asyncio.get_running_loop()
        self._groups: dict[Request, list[_Asked]] = {}
        """By what their requests share."""
        self._count = self._bytes = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._is_next = False
        """One of the calls takes its requests in the loop's next turn."""
        self._later: asyncio.TimerHandle | None = None

    def add(self, request: Request) -> _Asked:
        """Let a request wait for the next call."""
        asked = _Asked(request, self._loop.create_future())
        alike = request.alike or request
        if group := self._groups.get(alike):
            group.append(asked)
        else:
            self._groups[alike] = [asked]
        self._count += 1
        self._bytes += len(request.envelope.input)
        if not self._is_next:
            self._go_on()
        return asked

    def _go_on(self) -> None:
        """Begin a call for what waits, now or when its turn comes."""
        if not self._calls or (len(self._calls) < CALLS_AT_ONCE and self._is_full()):
            self._begin()
        elif self._later is None:
            delay = TURN_S * 2 ** min(len(self._calls) - 1, LATER_MAX)
            self._later = self._loop.call_later(delay, self._begin)

    def _is_full(self) -> bool:
        return self._count >= TASKS_PER_CALL or len(self._groups) >= GROUPS_PER_CALL or self._bytes >= BYTES_PER_CALL

    def _begin(self) -> None:
        if self._later:
            self._later.cancel()
            self._later = None
        if not self._is_next:
            self._is_next = True
            call = self._loop.create_task(self._call(), name="client.submit")
            self._calls.add(call)
            call.add_done_callback(self._ended)

    async def _call(self) -> None:
        """Send what waits when this begins, as far as it fits; more calls are for the rest."""
        self._is_next = False
        groups, call = self._take(), asyncio.current_task()
        for group in groups:
            for asked in group:
                asked.call = call
        if self._groups:
            self._go_on()
        if groups:
            await _carry_out(self._send, groups)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        if self._groups and not self._is_next:
            self._go_on()
        elif not self._calls:
            self._on_idle()

    def _take(self) -> list[list[_Asked]]:
        """Take what fits into a call, in the order of the groups; without those who were cancelled meanwhile."""
        if self._count <= TASKS_PER_CALL and len(self._groups) <= GROUPS_PER_CALL and self._bytes <= BYTES_PER_CALL:
            return self._take_all()
        taken: list[list[_Asked]] = []
        count = size = 0
        while self._groups and count < TASKS_PER_CALL and len(taken) < GROUPS_PER_CALL and size < BYTES_PER_CALL:
            like = next(iter(self._groups))
            waiting = self._groups.pop(like)
            group: list[_Asked] = []
            for place, asked in enumerate(waiting):
                if count == TASKS_PER_CALL or size >= BYTES_PER_CALL:
                    self._groups = {like: waiting[place:], **self._groups}
                    break
                self._count -= 1
                self._bytes -= len(asked.request.envelope.input)
                if not asked.accepted.done():
                    group.append(asked)
                    count += 1
                    size += len(asked.request.envelope.input)
            if group:
                taken.append(group)
        return taken

    def _take_all(self) -> list[list[_Asked]]:
        groups, self._groups = self._groups.values(), {}
        self._count = self._bytes = 0
        waiting = ([asked for asked in group if not asked.accepted.done()] for group in groups)
        return [group for group in waiting if group]


class Gathering:
    """`send` hands in groups of requests that are alike, all or none of each, and may be repeated for the same ones;
    it returns for each group why it was refused, if it was.

    Who is cancelled waits until the call that its request is part of has ended, `patience` s at most: only then can
    the task be cancelled.
    """

    def __init__(self, send: Send, patience: float) -> None:
        self._send, self._patience = send, patience
        self._lines: dict[Hashable, _Line] = {}

    async def submit(self, request: Request) -> list[str]:
        """Return when the task is accepted, with its id in a list, as whatever hands tasks in does; raises what `send`
        says of it alone.
        """
        place = (request.task_id.partition("/")[0], request.timeout)
        line = self._lines.get(place) or self._new_line(place)
        asked = line.add(request)
        try:
            await asked.accepted
        except asyncio.CancelledError:
            if asked.call:
                await asyncio.wait([asked.call], timeout=self._patience)
            raise
        return [request.task_id]

    def _new_line(self, place: Hashable) -> _Line:
        line = self._lines[place] = _Line(self._send, lambda: self._lines.pop(place, None))
        return line


async def _carry_out(send: Send, groups: list[list[_Asked]]) -> None:
    is_unclear = False
    try:
        refusals: Sequence[Exception | None] = await send([[asked.request for asked in group] for group in groups])
    except Exception as error:  # noqa: BLE001 (whatever it is, it is theirs)
        is_unclear = not isinstance(error, RedisUnavailable) and sum(map(len, groups)) > 1
        refusals = [error] * len(groups)
    alone = []
    for group, refusal in zip(groups, refusals, strict=True):
        if is_unclear or (len(group) > 1 and refusal and not isinstance(refusal, RedisUnavailable)):
            alone += group
        else:
            for asked in group:
                asked.tell(refusal)
    await _send_each(send, alone)


async def _send_each(send: Send, alone: Sequence[_Asked]) -> None:
    """Together they were refused: each is asked for by itself, and what was accepted is passed over. Not for who was
    cancelled meanwhile, and for none after the server was away: the others have not to wait for it one by one.
    """
    away: RedisUnavailable | None = None
    for asked in alone:
        if asked.accepted.done():
            continue
        refusal: Exception | None = away
        if not away:
            try:
                (refusal,) = await send([[asked.request]])
            except Exception as error:  # noqa: BLE001 (see above; the others shall be asked for, too)
                refusal = error
                away = error if isinstance(error, RedisUnavailable) else None
        asked.tell(refusal)
