"""Who holds which agent, which places are taken, and what happens to an agent that comes back.

Everything here is synchronous, so between two awaits the pool is always whole:

* a member is in exactly one state; the idle ones are in `idle`, the one used last at its end;
* nobody waits in line while a member is idle: `offer` hands it over before it would come to rest;
* an agent handed to a request is `active` from then on, and a request that went away meanwhile puts it back;
* `total` never exceeds `max_size`: who ended keeps its place until it has cleaned up. Only a recycle overlaps.
"""

import asyncio
import logging
import random
from bisect import insort
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from agentpool.agent import AgentType
from agentpool.clock import monotonic
from agentpool.errors import PoolClosed
from agentpool.pool.calls import Call
from agentpool.pool.circuit import Circuit
from agentpool.pool.config import PoolConfig
from agentpool.pool.figures import Counters, Histogram, Tally
from agentpool.pool.instance import Instance, MakeContext, checks_health, facts_of_failure
from agentpool.pool.leaving import Leaving
from agentpool.pool.ledger import Ledger
from agentpool.pool.member import Member
from agentpool.pool.states import GIVEN_BACK, LEASED, PooledState
from agentpool.pool.waiting import Waiters

if TYPE_CHECKING:
    from agentpool.pool.recycler import Recycler
    from agentpool.pool.spawner import Spawner

__all__ = ["Core"]

log = logging.getLogger(__name__)

LAST_USED = attrgetter("last_used")


class Core:
    """The state of a pool. `spawner` and `recycler` are set by the pool that puts the parts together.

    `reserved` places are kept free for saved agents, while those that make way for them clean up.
    """

    done: asyncio.Future[None]
    spawner: "Spawner"
    recycler: "Recycler"

    def __init__(
        self, type: AgentType, config: PoolConfig, name: str, make_context: MakeContext, *, times_runs: bool = True
    ) -> None:
        self.times_runs = times_runs
        self.type, self.config, self.name, self.make_context = type, config, name, make_context
        self.loop: asyncio.AbstractEventLoop | None = None
        self.members: dict[str, Member] = {}
        self.idle: list[Member] = []
        self.starting: dict[Member, Call] = {}
        self.waiters = Waiters()
        self.leaving = Leaving()
        self.reserved = 0
        self.ledger = Ledger()
        self.waits, self.runs = Histogram(), Histogram()
        self.counted, self.before = Tally(), Counters()
        self.closing = False
        self.short = False
        self.checks_health = checks_health(type)
        self.empty, self.populated = asyncio.Event(), asyncio.Event()
        self.random = random.Random()  # noqa: S311 (jitter, no secret)
        self.circuit = Circuit(config, name, self.random)
        self._min, self._max = config.min_size, config.max_size

    def open(self) -> None:
        """Belong to the running loop from now on; `short` says that an idle agent may be taken without more ado."""
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()
        self.done.set_result(None)
        self.short = not self.checks_health

    def check_loop(self) -> None:
        """Refuse callers from other loops and threads: nothing here is locked."""
        if self.loop is None:
            raise PoolClosed(f'Pool "{self.name}" is not open: use "async with pool:" or await pool.open()')
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self.loop:
            raise RuntimeError(f'pool "{self.name}" belongs to another event loop: from other threads use SyncPool')

    # -- places -------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Places taken, those included whose agent still cleans up."""
        return len(self.members) + self.leaving.places

    @property
    def room(self) -> int:
        """How many agents may be begun."""
        return self._max - len(self.members) - self.leaving.places - self.reserved

    def admit(self, member: Member, reason: str) -> None:
        """Give an agent that was just made a place."""
        self.members[member.id] = member
        self.empty.clear()
        self.populated.set()
        self.ledger.enter(member, reason)

    def end(self, member: Member, reason: str, *, overlaps: bool = False, refill: bool = True) -> "asyncio.Task[None]":
        """Give up an agent in whatever state; it cleans up in the background, in the task returned.

        `overlaps`: another has its place already. `refill`: make what is wanted when the place is free.
        """
        if member in self.idle:
            self.idle.remove(member)
        self.starting.pop(member, None)
        self.ledger.end(member, reason)
        del self.members[member.id]
        task = self.leaving.see_off(member.instance, None if overlaps else partial(self._left, refill))
        if member.successor:
            self.recycler.give_up(member, member.successor)
        if member.claim and not member.claim.done():
            member.claim.set_result(False)
        if not self.members:
            self.populated.clear()
            self.empty.set()
        return task

    def _left(self, refill: bool) -> None:
        if refill or self.waiters.count:
            self.spawner.fill()

    def broke(self, instance: Instance) -> None:
        """Replace an agent that cannot go on; one that is in use, when it is given back."""
        member = self.members.get(instance.id)
        if member is None or member.instance is not instance:
            return
        log.error("pool.agent_broke", extra=facts_of_failure(instance.id, instance.broken, instance.traceback))
        member.look()
        if member.state is not PooledState.STARTING and not member.proved:
            self.circuit.note_broken(instance)
        if member.state is PooledState.IDLE:
            self.end(member, instance.broken)
            self.spawner.fill()

    # -- from hand to hand --------------------------------------------------------------------------------------

    def take_idle(self) -> Member:
        """Take the idle agent that was used last."""
        member = self.idle.pop()
        self.ledger.move(member, LEASED)
        if len(self.idle) < self._min and len(self.members) < self._max:
            self.spawner.fill()
        return member

    def give_back(self, member: Member) -> None:
        """Have an agent back that nobody holds any more."""
        member.last_used = monotonic()
        if member.attention or member.running:
            self._settle(member)
        elif self.waiters.count and (waiter := self.waiters.pop()):
            self.ledger.hand_over(member)
            waiter.future.set_result((member, False))
        else:
            self.ledger.move(member, GIVEN_BACK)
            self.idle.append(member)

    def put_back(self, member: Member) -> None:
        """Have an agent back that was held, but not used."""
        if member.attention or member.running:
            self._settle(member)
        else:
            self.ledger.move(member, GIVEN_BACK)
            self.offer(member)

    def offer(self, member: Member, *, fresh: bool = False) -> None:
        """Hand an agent that is idle, but not among the idle ones yet, to the next in line."""
        waiter = self.waiters.pop()
        if waiter is None:
            insort(self.idle, member, key=LAST_USED)
        else:
            self.ledger.move(member, LEASED)
            waiter.future.set_result((member, fresh))

    def _settle(self, member: Member) -> None:
        if member.running:
            # Its holder left it running; it comes back here when that has ended.
            member.instance.stop_runs("the agent was given back")
        elif self.closing or member.instance.broken:
            self.end(member, member.instance.broken or "the pool is closed")
            self.spawner.fill()
        elif member.claim and not member.claim.done():
            claim, member.claim = member.claim, None
            member.look()
            claim.set_result(True)
        elif member.successor:
            self.recycler.swap(member)
        else:
            member.claim = None  # if there is one, it was cancelled in this very step
            member.look()
            self.ledger.move(member, GIVEN_BACK)
            self.offer(member)
