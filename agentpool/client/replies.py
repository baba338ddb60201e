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
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import msgspec

from agentpool.client.cleanup import CLOSE_WAITS_S
from agentpool.clock import monotonic
from agentpool.errors import PoolClosed, RedisUnavailable
from agentpool.periodic import Periodic
from agentpool.protocol.codec import new_id
from agentpool.protocol.commands import AgentEnded, AgentReady, TasksDone, decode_reply
from agentpool.protocol.records import Outcome
from agentpool.protocol.states import AgentStatus
from agentpool.store import Store
from agentpool.store.subscription import Subscription

__all__ = ["Answer", "Replies", "Waiter"]

T = TypeVar("T")

Answer = AgentReady | AgentEnded | Outcome

TICK_S = 0.5
"""Between two looks at everything that waits, while the subscription is up."""
TICK_WITHOUT_SUBSCRIPTION_S = 0.05
RECENT_MAX = 10_000
"""Outcomes, and tasks without one yet, that a client remembers: beyond that it looks in Redis."""
OUTAGE_S = 30.0
"""How long a wait without a timeout bears that Redis does not answer."""

_STARTED = frozenset({AgentStatus.IDLE, AgentStatus.ACTIVE, AgentStatus.RECYCLING})


class Waiter:
    """Something that waits for the answer to one request; several may wait for the same id, each with a future."""

    __slots__ = ("accepted", "futures", "id")

    def __init__(self, id: str) -> None:
        self.id = id
        self.accepted = False
        self.futures: list[asyncio.Future[Any]] = []

    @property
    def is_open(self) -> bool:
        """Tell whether it is to be looked up."""
        return self.accepted and bool(self.futures)

    def settle(self, answer: Answer | Exception) -> None:
        """Tell all that wait."""
        for future in self.futures:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class Replies:
    """All waiters of one client, its subscription and its look-ups. Both loops start with the first waiter."""

    def __init__(self, store: Store) -> None:
        channel = store.keys.client_channel(new_id())
        self.reply_to = channel.removeprefix(store.keys.channel_prefix)
        """As scripts take it: they put the prefix of channels before it themselves."""
        self._store = store
        self._tasks: dict[str, Waiter] = {}
        self._agents: dict[str, Waiter] = {}
        self._recent: dict[str, Outcome] = {}
        """Outcomes that came before anybody waited for them."""
        self._sent: set[str] = set()
        """Tasks whose reply is still to come."""
        self._withdrawing = 0
        self._withdrawn = asyncio.Event()
        self._withdrawn.set()
        self._due: set[str] = set()
        """Tasks to look up before the next tick."""
        self._next_tick = 0.0
        self._outage: tuple[float, RedisUnavailable] | None = None
        self._subscription = Subscription(
            store.connection, [channel], on_ready=self._look_at_all, on_message=self._dispatch
        )
        self._lookups = Periodic("client.replies", self.look_up, TICK_S)
        self._started = False

    def task(self, task_id: str) -> "asyncio.Future[Outcome]":
        """Wait for the outcome of a task: the future of it, to be cancelled by who waits no more."""
        return self._expect(self._tasks, task_id)

    def agent(self, agent_id: str) -> "asyncio.Future[AgentReady | AgentEnded]":
        """Wait until an agent runs or has ended: the future of it, to be cancelled by who waits no more."""
        return self._expect(self._agents, agent_id)

    def accept(self, id: str, *, look: bool = False) -> None:
        """Redis has the request by now, so it can be looked up; with `look`, at once."""
        waiter = self._tasks.get(id) or self._agents.get(id)
        if waiter is None:
            return  # it is answered
        waiter.accepted = True
        if look or not self._subscription.is_up:
            self._due.add(id)
            self._lookups.wake()

    def watch(self, task_id: str) -> "asyncio.Future[Outcome]":
        """Wait for the outcome of a task that Redis may have or not; what has come already is not looked up again."""
        future = self.task(task_id)
        if outcome := self._recent.get(task_id):
            future.set_result(outcome)
        else:
            self.accept(task_id, look=task_id not in self._sent)
        return future

    def sent(self, task_ids: Iterable[str]) -> None:
        """Redis accepted these tasks, whose replies come to this client: there is no need to look at once."""
        if self._subscription.is_up:
            self._sent.update(task_ids)
            while len(self._sent) > RECENT_MAX:
                self._sent.pop()

    def listen(self) -> None:
        """Begin to listen, before what is to be answered is sent."""
        if not self._started:
            self._started = True
            self._subscription.start()
            self._lookups.start()

    async def wait(self, future: "asyncio.Future[T]", timeout: float | None, doing: str) -> T:
        """Return the answer; raises `TimeoutError`, or `RedisUnavailable` when Redis is away at the deadline.

        Raises `PoolClosed` with what its holder is `doing`, a clause, when the client is closed meanwhile.
        """
        try:
            if timeout is None:
                return await future
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            if self._outage:
                raise RedisUnavailable(str(self._outage[1])) from None
            raise
        except PoolClosed:
            raise PoolClosed(f"This client was closed while {doing}. Open a client, and ask again.") from None
        finally:
            future.cancel()

    async def close(self) -> None:
        """End both loops until something waits anew; may be called twice. Those who still wait get `PoolClosed`."""
        self._started = False
        self._recent.clear()
        self._sent.clear()
        await self._lookups.stop()
        await self._subscription.stop()
        waiting = [future for waiter in (*self._tasks.values(), *self._agents.values()) for future in waiter.futures]
        for waiter in (*self._tasks.values(), *self._agents.values()):
            waiter.settle(PoolClosed("This client was closed."))
        if waiting:
            # They take back what they asked for.
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WAITS_S):
                await self._withdrawn.wait()

    @contextlib.contextmanager
    def withdrawing(self) -> Iterator[None]:
        """Within the block something is taken back, for which a close waits a moment."""
        self._withdrawing += 1
        self._withdrawn.clear()
        try:
            yield
        finally:
            self._withdrawing -= 1
            if not self._withdrawing:
                self._withdrawn.set()

    def _expect(self, waiters: dict[str, Waiter], id: str) -> "asyncio.Future[Any]":
        self.listen()
        waiter = waiters.get(id)
        if waiter is None:
            waiter = waiters[id] = Waiter(id)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiter.futures.append(future)
        future.add_done_callback(partial(self._leave, waiters, waiter))
        return future

    @staticmethod
    def _leave(waiters: dict[str, Waiter], waiter: Waiter, future: "asyncio.Future[Any]") -> None:
        if not future.cancelled():
            future.exception()  # nobody may be there to hear it
        waiter.futures.remove(future)
        if not waiter.futures and waiters.get(waiter.id) is waiter:
            del waiters[waiter.id]

    # -- what was published -------------------------------------------------------------------------------------

    def _dispatch(self, _channel: str, text: str) -> None:
        try:
            reply = decode_reply(text)
        except msgspec.DecodeError:
            return  # of a later release, and a hint only
        match reply:
            case TasksDone(tasks=tasks):
                for task_id, outcome in tasks:
                    self._take(task_id, outcome)
            case AgentReady() | AgentEnded():
                self._settle(self._agents, reply.agent_id, reply)

    def _take(self, task_id: str, outcome: Outcome | None) -> None:
        """A task is done; without an outcome that is to be fetched, if anybody waits for it."""
        self._sent.discard(task_id)
        if outcome is not None:
            if waiter := self._tasks.get(task_id):
                waiter.settle(outcome)
                return
            # Its handle may be asked for the result later.
            self._recent[task_id] = outcome
            if len(self._recent) > RECENT_MAX:
                self._recent.pop(next(iter(self._recent)))
        elif task_id in self._tasks:
            self._due.add(task_id)
            self._lookups.wake()

    @staticmethod
    def _settle(waiters: dict[str, Waiter], id: str, answer: Answer | Exception) -> None:
        if waiter := waiters.get(id):
            waiter.settle(answer)

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
            await self._look_up_tasks([id for id in due if (found := self._tasks.get(id)) and found.is_open])
            await self._look_up_agents([id for id in due if (found := self._agents.get(id)) and found.is_open])
            self._outage = None
        except RedisUnavailable as error:
            self._outage = self._outage or (now, error)
            if now - self._outage[0] >= OUTAGE_S:
                for waiter in (*self._tasks.values(), *self._agents.values()):
                    if waiter.is_open:
                        waiter.settle(RedisUnavailable(str(error)))
        return max(self._next_tick - monotonic(), 0.0)

    async def _look_up_tasks(self, ids: list[str]) -> None:
        settled = await self._store.tasks.settled(ids)
        for id, answer in (await self._store.tasks.outcomes(settled)).items():
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
