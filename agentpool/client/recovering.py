"""What a client asked of Redis, in case the server loses it with its latest writes: then it is asked again.

A server that has started anew shows it by the id of its run. What this client still waits for, and what it handed in of
late, is looked up then, and what is unknown is handed in once more with the same id: Redis passes over what it knows.
Workers may have told what they ran by then, or do so within a moment; so an agent or a pool that is unknown at first is
tried again for a while.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from agentpool.client.requests import Request, Spawn
from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, RedisUnavailable, UnknownAgent, UnknownAgentType, UnknownPool, UnknownTask
from agentpool.store import Store

__all__ = ["UNKNOWN", "Recovery"]

UNKNOWN = (UnknownAgent, UnknownPool)
"""What may become known in a moment, if the server has just started anew."""

KEPT_S = 10.0
KEPT_TASKS = 20_000
KEPT_BYTES = 16_000_000
"""Of what was submitted and nobody waits for: what a server may lose is a few seconds old."""
BATCH_TASKS = 500
BATCH_BYTES = 1_000_000
"""From which on a batch of it is full."""
PATIENCE_S = 10.0
"""How long after a restart of the server an agent or a pool may be unknown."""

HOLD_S = 1.0
"""How long what is unknown is not handed in again: workers may know what came of it, and tell."""
SETTLING_S = 3.0
"""How long after it what is asked for at once may be."""

Asked = Request | Spawn
T = TypeVar("T")


class Recovery:
    """`submit` and `place` hand in again; `fail(id, error)` tells those who wait that this was refused."""

    def __init__(
        self,
        store: Store,
        submit: Callable[[Request], Awaitable[object]],
        place: Callable[[Spawn], Awaitable[object]],
        fail: Callable[[str, AgentPoolError], object],
    ) -> None:
        self._store, self._submit, self._place, self._fail = store, submit, place, fail
        self.run = ""
        """The run of the server that this client has seen last, '' before it looked."""
        self._waiting: dict[str, Asked] = {}
        self._recent: deque[tuple[float, int, Sequence[Request]]] = deque()
        """Batches of what was accepted: when they were full, their bytes, and themselves."""
        self._tasks = self._bytes = 0
        self._latest: list[Request] = []
        self._latest_bytes = 0
        """The next batch: what is accepted one by one shall not cost a look at the clock each."""
        self._again: dict[str, Asked] = {}
        """To be handed in again, and not done yet."""
        self._begins_at = self._until = self._settled_at = 0.0
        self.turns = 0
        """Grows whenever something is not expected any more: who found it unknown before has to look again."""

    async def begin(self, timeout: float) -> None:
        """See in which run the server is; raises `RedisUnavailable` unless it answers."""
        self.run = await self._store.connection.server_run(timeout)

    # -- what is kept -------------------------------------------------------------------------------------------

    def wait_for(self, id: str, asked: Asked) -> None:
        """Somebody waits for this, which Redis has accepted."""
        self._waiting[id] = asked

    def leave(self, id: str) -> None:
        """Nobody waits for this any more."""
        self._waiting.pop(id, None)
        self._again.pop(id, None)

    def keep(self, requests: Sequence[Request]) -> None:
        """Redis has accepted these; they are kept for a while, as far as the bounds allow."""
        self._latest += requests
        for request in requests:
            self._latest_bytes += len(request.envelope.input)
        if len(self._latest) >= BATCH_TASKS or self._latest_bytes >= BATCH_BYTES:
            self._end_batch()

    def _end_batch(self) -> None:
        if self._latest:
            self._recent.append((monotonic(), self._latest_bytes, self._latest))
            self._tasks, self._bytes = self._tasks + len(self._latest), self._bytes + self._latest_bytes
            self._latest, self._latest_bytes = [], 0
        while self._recent and (self._tasks > KEPT_TASKS or self._bytes > KEPT_BYTES):
            self._forget_first()

    def forget_old(self) -> None:
        """Forget what the server had long enough; it was just looked at, so that this is no outage."""
        self._end_batch()
        while self._recent and monotonic() - self._recent[0][0] > KEPT_S:
            self._forget_first()

    def _forget_first(self) -> None:
        _, size, requests = self._recent.popleft()
        self._tasks, self._bytes = self._tasks - len(requests), self._bytes - size

    @property
    def is_behind(self) -> bool:
        """Tell whether anything is still to be handed in again."""
        return bool(self._again)

    @property
    def next_turn(self) -> float:
        """When to hand in again, unless that is tried already; monotonic."""
        return self._begins_at if self._again and monotonic() < self._begins_at else math.inf

    def expects(self, id: str) -> bool:
        """Tell whether this is about to be handed in again."""
        return id in self._again

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what `ask` does. What is unknown although the server has just started anew may become known in a
        moment, as workers and masters tell of it: then it is asked again.
        """
        try:
            return await ask()
        except UNKNOWN as error:
            return await self.insist_after(error, ask)

    async def insist_after(self, error: AgentPoolError, ask: Callable[[], Awaitable[T]]) -> T:
        """Go on as `insist` does where the first answer was this error, one of `UNKNOWN`."""
        while True:
            await self.look()
            if monotonic() > self._settled_at:
                raise error
            await asyncio.sleep(random.uniform(0.1, 0.3))  # noqa: S311 (jitter, no secret)
            try:
                return await ask()
            except UNKNOWN as again:
                error = again

    # -- a server that has started anew -------------------------------------------------------------------------

    async def look(self) -> bool:
        """Tell whether the server has started anew since the last look; what it has lost is to be handed in again at
        `next_turn`.
        """
        run = await self._store.connection.server_run()
        before, self.run = self.run, run
        if "" in (before, run) or before == run:
            return False
        self._end_batch()
        self._again.update(self._waiting)
        self._again.update({request.task_id: request for _, _, batch in self._recent for request in batch})
        now = monotonic()
        self._begins_at, self._until, self._settled_at = now + HOLD_S, now + PATIENCE_S, now + SETTLING_S
        await self.hand_in_again()
        return True

    async def hand_in_again(self) -> None:
        """Hand in what Redis does not know, as far as it takes it now. What one run of the server knows or took says
        nothing of the next one's.
        """
        run = self.run
        await self._pass_over_what_is_known()
        if monotonic() < self._begins_at:
            return
        asked = list(self._again.items())
        results = await asyncio.gather(*(self._send(one) for _, one in asked), return_exceptions=True)
        self.turns += 1
        if run != self.run:
            return
        for (id, _), error in zip(asked, results, strict=True):
            if isinstance(error, UnknownPool | UnknownAgent | UnknownAgentType) and monotonic() < self._until:
                continue
            if isinstance(error, RedisUnavailable):
                continue
            self._again.pop(id, None)
            if isinstance(error, AgentPoolError):
                self._fail(id, error)

    async def _send(self, asked: Asked) -> object:
        return await (self._place(asked) if isinstance(asked, Spawn) else self._submit(asked))

    async def _pass_over_what_is_known(self) -> None:
        run = self.run
        tasks = [id for id, asked in self._again.items() if isinstance(asked, Request)]
        agents = [id for id, asked in self._again.items() if isinstance(asked, Spawn)]
        found = await self._store.tasks.outcomes(await self._store.tasks.settled(tasks))
        known = set(tasks) - {id for id, answer in found.items() if isinstance(answer, UnknownTask)}
        known |= {record.agent_id for record in await self._store.agents.several(agents)}
        if run == self.run:
            self._again = {id: asked for id, asked in self._again.items() if id not in known}
        self.turns += 1
