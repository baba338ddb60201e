"""How a client on Redis learns that an agent runs or a task is done.

Theory of operation. Every request names the client's channel, and one subscription on it serves all that wait. But a
publication may be lost (Redis was away, the user may not subscribe), so nothing depends on one: what waits is also
looked up in Redis, together and in few commands, at every tick and right after each (re)subscription. While there is
no subscription the ticks come faster.

A waiter is registered before its request is sent, so that an early reply is not lost, and looked up only once the
request was accepted: before, there is nothing to find.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterator

import msgspec

from agentpool.client.cleanup import CLOSE_WAITS_S
from agentpool.clock import monotonic
from agentpool.errors import PoolClosed, RedisUnavailable, UnknownTask
from agentpool.periodic import Periodic
from agentpool.protocol.codec import new_id
from agentpool.protocol.commands import AgentEnded, AgentReady, TasksDone, decode_reply
from agentpool.protocol.records import Outcome
from agentpool.protocol.states import AgentStatus
from agentpool.store import Store
from agentpool.store.subscription import Subscription

__all__ = ["Answer", "Replies", "Waiter"]

Answer = AgentReady | AgentEnded | Outcome

TICK_S = 0.5
"""Between two looks at everything that waits, while the subscription is up."""
TICK_WITHOUT_SUBSCRIPTION_S = 0.05
OUTAGE_S = 30.0
"""How long a wait without a timeout bears that Redis does not answer."""

_STARTED = frozenset({AgentStatus.IDLE, AgentStatus.ACTIVE, AgentStatus.RECYCLING})


class Waiter:
    """Something that waits for the answer to one request; several may wait for the same id."""

    __slots__ = ("accepted", "future", "holders", "id", "left")

    def __init__(self, id: str) -> None:
        self.id = id
        self.accepted = False
        self.holders = 0
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.left: asyncio.Future[None] | None = None
        """Set by who wants to know when the last holder is gone."""

    async def dismiss(self, timeout: float) -> None:
        """Tell all holders to wait no more, and let them take back what they asked for, at most `timeout` seconds."""
        self.future.cancel()
        self.left = self.left or asyncio.get_running_loop().create_future()
        await asyncio.wait([self.left], timeout=timeout)


class Replies:
    """All waiters of one client, its subscription and its look-ups. Both loops start with the first waiter."""

    def __init__(self, store: Store) -> None:
        channel = store.keys.client_channel(new_id())
        self.reply_to = channel.removeprefix(store.keys.channel_prefix)
        """As scripts take it: they put the prefix of channels before it themselves."""
        self._store = store
        self._tasks: dict[str, Waiter] = {}
        self._agents: dict[str, Waiter] = {}
        self._due: set[str] = set()
        """Tasks to look up before the next tick."""
        self._next_tick = 0.0
        self._outage: tuple[float, RedisUnavailable] | None = None
        self._subscription = Subscription(
            store.connection, [channel], on_ready=self._look_at_all, on_message=self._dispatch
        )
        self._lookups = Periodic("client.replies", self.look_up, TICK_S)
        self._started = False

    @contextlib.contextmanager
    def task(self, task_id: str) -> Iterator[Waiter]:
        """Wait for the outcome of a task."""
        with self._expect(self._tasks, task_id) as waiter:
            yield waiter

    @contextlib.contextmanager
    def agent(self, agent_id: str) -> Iterator[Waiter]:
        """Wait until an agent runs or has ended."""
        with self._expect(self._agents, agent_id) as waiter:
            yield waiter

    def accept(self, waiter: Waiter, *, look: bool = False) -> None:
        """Redis has the request by now, so it can be looked up; with `look`, at once."""
        waiter.accepted = True
        if look or not self._subscription.is_up:
            self._due.add(waiter.id)
            self._lookups.wake()

    async def wait(self, waiter: Waiter, timeout: float | None, doing: str) -> Answer:
        """Return the answer; raises `TimeoutError`, or `RedisUnavailable` when Redis is away at the deadline.

        Raises `PoolClosed` with what its holder is `doing`, a clause, when the client is closed meanwhile.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            left = OUTAGE_S if deadline is None else max(deadline - monotonic(), 0)
            # asyncio.wait leaves the future alone when this caller is cancelled: others may share it.
            done, _ = await asyncio.wait([waiter.future], timeout=left)
            if done:
                if waiter.future.cancelled():
                    raise PoolClosed(f"This client was closed while {doing}. Open a client, and ask again.")
                return waiter.future.result()
            if self._outage and (deadline or monotonic() - self._outage[0] >= OUTAGE_S):
                raise RedisUnavailable(str(self._outage[1]))
            if deadline is not None:
                raise TimeoutError

    async def close(self) -> None:
        """End both loops until something waits anew; may be called twice. Those who still wait get `PoolClosed`."""
        self._started = False
        await self._lookups.stop()
        await self._subscription.stop()
        waiters = [*self._tasks.values(), *self._agents.values()]
        await asyncio.gather(*(waiter.dismiss(CLOSE_WAITS_S) for waiter in waiters))

    @contextlib.contextmanager
    def _expect(self, waiters: dict[str, Waiter], id: str) -> Iterator[Waiter]:
        if not self._started:
            self._started = True
            self._subscription.start()
            self._lookups.start()
        waiter = waiters.get(id) or waiters.setdefault(id, Waiter(id))
        waiter.holders += 1
        try:
            yield waiter
        finally:
            waiter.holders -= 1
            if not waiter.holders:
                del waiters[id]
                waiter.future.cancel()
                if waiter.left:
                    waiter.left.set_result(None)

    # -- what was published -------------------------------------------------------------------------------------

    def _dispatch(self, _channel: str, text: str) -> None:
        try:
            reply = decode_reply(text)
        except msgspec.DecodeError:
            return  # of a later release, and a hint only
        match reply:
            case TasksDone(tasks=tasks):
                for task_id, outcome in tasks:
                    if outcome is not None:
                        self._settle(self._tasks, task_id, outcome)
                    elif task_id in self._tasks:
                        self._due.add(task_id)
                        self._lookups.wake()
            case AgentReady() | AgentEnded():
                self._settle(self._agents, reply.agent_id, reply)

    @staticmethod
    def _settle(waiters: dict[str, Waiter], id: str, answer: Answer | Exception) -> None:
        waiter = waiters.get(id)
        if waiter is None or waiter.future.done():
            return
        if isinstance(answer, Exception):
            waiter.future.set_exception(answer)
        else:
            waiter.future.set_result(answer)

    # -- what is looked up --------------------------------------------------------------------------------------

    def _look_at_all(self) -> None:
        self._next_tick = 0.0
        self._lookups.wake()

    async def look_up(self) -> float:
        """Look up what is due, or everything when a tick has passed; returns the delay until the next tick, in s."""
        due, self._due = self._due, set()
        now = monotonic()
        if now >= self._next_tick:
            tick = TICK_S if self._subscription.is_up else TICK_WITHOUT_SUBSCRIPTION_S
            self._next_tick = now + tick * random.uniform(0.8, 1.2)  # noqa: S311 (jitter, no secret)
            due = {*self._tasks, *self._agents}
        try:
            await self._look_up_tasks([id for id in due if _is_open(self._tasks.get(id))])
            await self._look_up_agents([id for id in due if _is_open(self._agents.get(id))])
            self._outage = None
        except RedisUnavailable as error:
            self._outage = self._outage or (now, error)
        return max(self._next_tick - monotonic(), 0.0)

    async def _look_up_tasks(self, ids: list[str]) -> None:
        for id in await self._store.tasks.settled(ids):
            try:
                answer: Outcome | Exception | None = await self._store.tasks.read(id)
            except UnknownTask as error:
                answer = error
            if answer is not None:
                self._settle(self._tasks, id, answer)

    async def _look_up_agents(self, ids: list[str]) -> None:
        records = {record.agent_id: record for record in await self._store.agents.several(ids)}
        for id in ids:
            record = records.get(id)
            if record is None:
                status, detail = await self._store.agents.ended(id)
                self._settle(self._agents, id, AgentEnded(agent_id=id, status=status, detail=detail))
            elif record.status in _STARTED:
                self._settle(self._agents, id, AgentReady(agent_id=id, process_id=record.process_id))


def _is_open(waiter: Waiter | None) -> bool:
    return waiter is not None and waiter.accepted and not waiter.future.done()
