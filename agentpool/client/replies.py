"""How a client on Redis learns that an agent runs or a task is done.

Theory of operation. Every request names the client's channel, and one subscription on it serves all that wait. But a
publication may be lost (Redis was away, the user may not subscribe), so nothing depends on one: what waits is also
looked up in Redis, together and in few commands: in turn at every tick, and all of it right after each
(re)subscription. While there is no subscription the ticks come faster, and look at all. What Redis knows nothing of may
have been lost with the server's latest writes, which `recovering.py` finds out.

A waiter is registered before its request is sent, so that an early reply is not lost, and looked up only once the
request was accepted: before, there is nothing to find.
"""

import asyncio
import contextlib
import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from agentpool.client.backend import Waiter
from agentpool.client.cleanup import CLOSE_WAITS_S
from agentpool.client.recovering import Recovery
from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, PoolClosed, RedisUnavailable, UnknownTask
from agentpool.periodic import Periodic, expire_after
from agentpool.protocol.codec import new_id
from agentpool.protocol.commands import AgentEnded, AgentReady, TasksDone, decode_reply
from agentpool.protocol.states import AgentStatus
from agentpool.protocol.tasks import Outcome
from agentpool.store import Store
from agentpool.store.subscription import Subscription

__all__ = ["Answer", "Replies"]

T = TypeVar("T")

Answer = AgentReady | AgentEnded | Outcome

TICK_S = 0.5
"""Between two looks at everything that waits, while the subscription is up."""
TICK_WITHOUT_SUBSCRIPTION_S = 0.05
LOOKS_PER_TICK = 1000
"""Enough for all who usually wait, and little beside the work of a client that waits for more."""
RECENT_MAX = 10_000
SENT_MAX = 100_000
"""Outcomes, and ids of tasks without one yet, that a client remembers: beyond that it looks in Redis."""
OUTAGE_S = 30.0
"""How long a wait without a timeout bears that Redis does not answer."""

_STARTED = frozenset({AgentStatus.IDLE, AgentStatus.ACTIVE, AgentStatus.RECYCLING})


Waiters = dict[str, list[Waiter]]
"""Those who wait for an answer, by what it is about. One who was cancelled stays up to the next tick."""


class Replies:
    """All waiters of one client, its subscription and its look-ups. Both loops start with the first waiter."""

    def __init__(self, store: Store) -> None:
        channel = store.keys.client_channel(new_id())
        self.reply_to = channel.removeprefix(store.keys.channel_prefix)
        """As scripts take it: they put the prefix of channels before it themselves."""
        self._store = store
        self._tasks: Waiters = {}
        self._agents: Waiters = {}
        self._unsent: Waiters = {}
        """Those whose request Redis does not have yet: several may ask for the same agent."""
        self._round: list[str] = []
        """What waited at an earlier tick and is still to be looked up."""
        self._recent = OrderedDict[str, Outcome]()
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
        self._subscribed_anew = False
        self.recovery: Recovery
        """To be set before anything waits."""

    def task(self, task_id: str) -> "asyncio.Future[Outcome]":
        """Wait for the outcome of a task that is yet to be sent: the future of it, to be cancelled by who waits no
        more.
        """
        return self._expect_unsent(self._tasks, task_id)

    def agent(self, agent_id: str) -> "asyncio.Future[AgentReady | AgentEnded]":
        """Wait until an agent runs or has ended: the future of it, to be cancelled by who waits no more."""
        return self._expect_unsent(self._agents, agent_id)

    def accept(self, id: str) -> None:
        """Redis has the request by now, so it can be looked up."""
        self._unsent.pop(id, None)
        if not self._subscription.is_up:
            self._look_at(id)

    def refuse(self, id: str, error: AgentPoolError) -> None:
        """What is waited for was refused."""
        self._settle_all([id], error)

    def leave(self, id: str, future: "asyncio.Future[Any]") -> None:
        """Wait no more for what was sent, or came to nothing before it was."""
        others = self._unsent.get(id)
        if others and future in others:
            others.remove(future)
            if not others:
                del self._unsent[id]
        future.cancel()

    def watch(self, task_id: str) -> "asyncio.Future[Outcome]":
        """Wait for the outcome, or `UnknownTask`, of a task that Redis may have or not."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.tell(task_id, future)
        return future

    def tell(self, task_id: str, waiter: Waiter) -> None:
        """Have a waiter told what `watch` returns; what has come already is not looked up again."""
        if outcome := self._recent.get(task_id):
            waiter.set_result(outcome)
            return
        if task_id not in self._sent or not self._subscription.is_up:
            self._look_at(task_id)
        self._expect(self._tasks, task_id, waiter)

    def sent(self, task_ids: Iterable[str]) -> None:
        """Redis accepted these tasks, whose replies come to this client: there is no need to look at once."""
        if self._subscription.is_up:
            self._sent.update(task_ids)
            while len(self._sent) > SENT_MAX:
                self._sent.pop()

    def listen(self) -> None:
        """Begin to listen, before what is to be answered is sent."""
        if not self._started:
            self._started = True
            self._subscription.start()
            self._lookups.start()

    async def wait(self, future: "asyncio.Future[T]", timeout: float | None, doing: str, id: str) -> T:
        """Return the answer; raises `TimeoutError`, or `RedisUnavailable` when Redis is away at the deadline.

        Raises `PoolClosed` with what its holder is `doing`, a clause with {} for the id, when the client is closed
        meanwhile.
        """
        late = None if timeout is None else expire_after(future, timeout)
        try:
            return await future
        except TimeoutError:
            if self._outage:
                raise RedisUnavailable(str(self._outage[1])) from None
            raise
        except PoolClosed:
            what = doing.format(id)
            raise PoolClosed(f"This client was closed while {what}. Open a client, and ask again.") from None
        finally:
            future.cancel()
            if late:
                late.cancel()

    async def close(self) -> None:
        """End both loops until something waits anew; may be called twice. Those who still wait get `PoolClosed`."""
        self._started = False
        self._recent.clear()
        self._sent.clear()
        await self._lookups.stop()
        await self._subscription.stop()
        if self._settle_all([*self._tasks, *self._agents], PoolClosed("This client was closed.")):
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

    def _expect(self, waiters: Waiters, id: str, waiter: Waiter) -> None:
        if not self._started:
            self.listen()
        if others := waiters.get(id):
            others.append(waiter)
        else:
            waiters[id] = [waiter]

    def _expect_unsent(self, waiters: Waiters, id: str) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._expect(waiters, id, future)
        if others := self._unsent.get(id):
            others.append(future)
        else:
            self._unsent[id] = [future]
        return future

    # -- what was published -------------------------------------------------------------------------------------

    def _dispatch(self, _channel: str, text: str) -> None:
        try:
            reply = decode_reply(text)
        except msgspec.DecodeError:
            return  # of a later release, and a hint only
        if isinstance(reply, TasksDone):
            self._take(reply.tasks)
        else:
            _settle(self._agents, reply.agent_id, reply)

    def _take(self, tasks: Iterable[tuple[str, Outcome | None]]) -> None:
        """Tasks are done; where there is no outcome it is to be fetched, if anybody waits for it."""
        self._sent.difference_update([task_id for task_id, _ in tasks])
        for task_id, outcome in tasks:
            if outcome is None:
                if task_id in self._tasks:
                    self._look_at(task_id)
            elif not _settle(self._tasks, task_id, outcome):
                self._remember(task_id, outcome)

    def _remember(self, task_id: str, outcome: Outcome) -> None:
        """Keep an outcome: its handle may be asked for the result later."""
        self._recent[task_id] = outcome
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    def _settle_all(self, ids: Iterable[str], error: Exception) -> bool:
        told = [_settle(waiters, id, error) for id in ids for waiters in (self._tasks, self._agents)]
        return any(told)

    # -- what is looked up --------------------------------------------------------------------------------------

    def _look_at_all(self) -> None:
        self._sent.clear()  # replies may have been lost meanwhile
        self._subscribed_anew = True
        self._due.update(self._tasks, self._agents)
        self._lookups.wake()

    def _look_at(self, id: str) -> None:
        self._due.add(id)
        self._lookups.wake()

    async def look_up(self) -> float:
        """Look up what is due, also by a tick; returns the delay until the next tick, in s."""
        due, self._due = self._due, set()
        now = monotonic()
        if now >= self._next_tick:
            due |= self._due_at_tick()
            tick = TICK_S if self._subscription.is_up else TICK_WITHOUT_SUBSCRIPTION_S
            self._next_tick = now + tick * random.uniform(0.8, 1.2)  # noqa: S311 (jitter, no secret)
        due -= self._unsent.keys()
        try:
            if self._subscribed_anew:
                await self.recovery.look()
                self._subscribed_anew = False
            elif self.recovery.is_behind:
                await self.recovery.hand_in_again()
            elif self._subscription.is_up:
                self.recovery.forget_old()
            await self._look_up_tasks([id for id in due if id in self._tasks])
            await self._look_up_agents([id for id in due if id in self._agents])
            self._outage = None
        except RedisUnavailable as error:
            self._outage = self._outage or (now, error)
            if now - self._outage[0] >= OUTAGE_S:
                waiting = {*self._tasks, *self._agents} - self._unsent.keys()
                self._settle_all(waiting, RedisUnavailable(str(error)))
        next_turn = min(self._next_tick, self.recovery.next_turn)
        return max(next_turn - monotonic(), 0.0)

    def _due_at_tick(self) -> set[str]:
        """Return what to look up at a tick, and forget those who wait no more.

        While answers may still be published that is a part of those who waited at an earlier tick, in turn.
        """
        for waiters in (self._tasks, self._agents):
            for id in [id for id, futures in waiters.items() if all(future.done() for future in futures)]:
                del waiters[id]
        if not self._subscription.is_up:
            return {*self._tasks, *self._agents}
        due, self._round = self._round[:LOOKS_PER_TICK], self._round[LOOKS_PER_TICK:]
        if not self._round:
            self._round = [*self._agents, *self._tasks]
        return set(due)

    async def _look_up_tasks(self, ids: list[str]) -> None:
        turns = self.recovery.turns
        settled = await self._store.tasks.settled(ids)
        unknown: dict[str, Exception] = {}
        for id, answer in (await self._store.tasks.outcomes(settled)).items():
            if isinstance(answer, UnknownTask):
                unknown[id] = answer
            else:
                _settle(self._tasks, id, answer)
        await self._settle_unknown(self._tasks, unknown, turns)

    async def _settle_unknown(self, waiters: Waiters, unknown: Mapping[str, Answer | Exception], turns: int) -> None:
        """Tell those who wait for what Redis does not know, unless it was lost with the server's latest writes, or has
        been handed in again since `turns`.
        """
        if not unknown:
            return
        if await self.recovery.look() or self.recovery.turns != turns:
            self._due.update(unknown)
            return
        for id, answer in unknown.items():
            if not self.recovery.expects(id):
                _settle(waiters, id, answer)

    async def _look_up_agents(self, ids: list[str]) -> None:
        turns = self.recovery.turns
        records = {record.agent_id: record for record in await self._store.agents.several(ids)}
        unknown: dict[str, Answer] = {}
        for id in ids:
            record = records.get(id)
            if record is None:
                status, detail = await self._store.agents.ended(id)
                ended = AgentEnded(agent_id=id, status=status, detail=detail)
                if detail:
                    _settle(self._agents, id, ended)
                else:
                    unknown[id] = ended
            elif record.status in _STARTED:
                _settle(self._agents, id, AgentReady(agent_id=id, process_id=record.process_id))
        await self._settle_unknown(self._agents, unknown, turns)


def _settle(waiters: Waiters, id: str, answer: Answer | Exception) -> bool:
    """Tell all that wait; returns whether there were any."""
    told = False
    for future in waiters.pop(id, ()):
        if future.done():
            continue
        told = True
        if isinstance(answer, Exception):
            future.set_exception(answer)
            future.exception()  # nobody may be there to hear it
        else:
            future.set_result(answer)
    return told
