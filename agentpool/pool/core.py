"""Who holds which agent, and the line of those who wait.

Everything here is synchronous but `acquire`, so between two awaits the pool is always whole:

* a member is in exactly one state; the idle ones are in `idle`, the one used last at its end;
* nobody waits in line while a member is idle: `offer` hands it over before it would come to rest;
* an agent handed to a request is `active` from then on, and a request that went away meanwhile puts it back.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from agentpool.agent import AgentType
from agentpool.clock import monotonic
from agentpool.errors import PoolAtCapacity, PoolClosed
from agentpool.pool.calls import Call
from agentpool.pool.config import PoolConfig
from agentpool.pool.errors import AcquireTimeout
from agentpool.pool.instance import Instance, MakeContext, checks_health
from agentpool.pool.ledger import Ledger
from agentpool.pool.member import Member
from agentpool.pool.metrics import Histogram
from agentpool.pool.states import GIVEN_BACK, LEASED, PooledState
from agentpool.pool.waiting import Waiter, Waiters

__all__ = ["Core"]

log = logging.getLogger(__name__)


class Core:
    """The state of a pool. `fill`, `can_start` and `swap` are set by the pool that puts the parts together."""

    fill: Callable[[], None]
    """Begin making the agents that are wanted."""
    can_start: Callable[[], bool]
    swap: Callable[[Member], None]
    """Put the successor, which is ready, into the place of an agent that nobody holds."""

    def __init__(self, type: AgentType, config: PoolConfig, name: str, make_context: MakeContext) -> None:
        self.type, self.config, self.name, self.make_context = type, config, name, make_context
        self.loop: asyncio.AbstractEventLoop | None = None
        self.members: dict[str, Member] = {}
        self.idle: list[Member] = []
        self.starting: dict[Member, Call] = {}
        self.waiters = Waiters()
        self.ledger = Ledger()
        self.waits, self.runs = Histogram(), Histogram()
        self.requests = self.errors = self.acquired = self.refused = self.timed_out = 0
        self.closing = False
        self.short = False
        self.checks_health = checks_health(type)
        self.leaving: dict[asyncio.Task[None], Instance] = {}
        self.deaf: list[Instance] = []
        self.empty = asyncio.Event()
        self.random = random.Random()  # noqa: S311 (jitter, no secret)
        self._min, self._max = config.min_size, config.max_size

    def open(self) -> None:
        """Belong to the running loop from now on; `short` says that an idle agent may be taken without more ado."""
        self.loop = asyncio.get_running_loop()
        self.short = not self.checks_health

    # -- idle agents: the short way -----------------------------------------------------------------------------

    def take_idle(self) -> Member:
        """Take the idle agent that was used last."""
        member = self.idle.pop()
        self.ledger.move(member, LEASED)
        if len(self.idle) < self._min and len(self.members) < self._max:
            self.fill()
        return member

    def give_back(self, member: Member) -> None:
        """Have an agent back that nobody holds any more."""
        member.last_used = monotonic()
        if member.attention or member.running:
            self._settle(member)
        else:
            self.ledger.move(member, GIVEN_BACK)
            if self.waiters.count:
                self.offer(member)
            else:
                self.idle.append(member)

    def offer(self, member: Member, *, fresh: bool = False) -> None:
        """Hand an agent that is idle, but not among the idle ones yet, to the next in line."""
        waiter = self.waiters.pop()
        if waiter is None:
            self.idle.append(member)
        else:
            self.ledger.move(member, LEASED)
            waiter.future.set_result((member, fresh))

    def _settle(self, member: Member) -> None:
        if member.running:
            # Its holder left it running; it comes back here when that has ended.
            member.instance.stop_runs("the agent was given back")
        elif self.closing or member.instance.broken:
            self.end(member, member.instance.broken or "the pool is closed")
            self.fill()
        elif member.claim:
            claim, member.claim = member.claim, None
            member.look()
            claim.set_result(True)
        elif member.successor:
            self.swap(member)
        else:
            member.look()
            self.ledger.move(member, GIVEN_BACK)
            self.offer(member)

    # -- the end of agents --------------------------------------------------------------------------------------

    def end(self, member: Member, reason: str) -> None:
        """Give up an agent in whatever state; its place is free at once, it cleans up in the background."""
        if member in self.idle:
            self.idle.remove(member)
        self.ledger.end(member, reason)
        del self.members[member.id]
        self.see_off(member.instance)
        if member.successor:
            self.see_off(member.successor)
        if member.claim:
            member.claim.set_result(False)
        if not self.members:
            self.empty.set()

    def see_off(self, instance: Instance) -> None:
        """Let an agent clean up, in the background."""
        task = asyncio.create_task(instance.close(), name=f"see off {instance.id}")
        self.leaving[task] = instance
        task.add_done_callback(self._left)

    def _left(self, task: "asyncio.Task[None]") -> None:
        instance = self.leaving.pop(task)
        self.deaf = [known for known in (*self.deaf, instance) if known.calls_that_ignore_their_end()]

    def broke(self, instance: Instance) -> None:
        """Replace an agent that cannot go on; one that is in use, when it is given back."""
        member = self.members.get(instance.id)
        if member is None or member.instance is not instance:
            return
        log.error("pool.agent_broke", extra={"agent_id": instance.id, "error": instance.broken})
        member.look()
        if member.state is PooledState.IDLE:
            self.end(member, instance.broken)
            asyncio.get_running_loop().call_later(
                self.config.breaker_backoff, self.fill
            )  # else it may break at once, for ever

    # -- acquire: the long way ----------------------------------------------------------------------------------

    async def acquire(self, priority: int, timeout: float | None) -> Member:
        """Return an agent, active; raises `AcquireTimeout`, `PoolAtCapacity`, `PoolClosed`, or why none can be made."""
        self.check_loop()
        asked = monotonic()
        timeout = self.config.acquire_timeout if timeout is None else timeout
        deadline = None if timeout is None else asked + timeout
        again = False
        while True:
            if self.closing:
                raise PoolClosed(f'Pool "{self.name}" is closed. Open a new one.')
            if self.idle:
                member, fresh = self.take_idle(), False
            else:
                member, fresh = await self._wait_in_line(priority, deadline, timeout, again)
            if fresh or not self.checks_health or await self._is_healthy(member, deadline):
                self.waits.record(monotonic() - asked)
                self.acquired += 1
                return member
            again = True
            if deadline is not None and monotonic() >= deadline:
                self.timed_out += 1
                raise AcquireTimeout(self.name, timeout or 0.0)

    async def _wait_in_line(
        self, priority: int, deadline: float | None, timeout: float | None, again: bool
    ) -> tuple[Member, bool]:
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop, priority, ripe=not self.config.warm_wait or again)
        self._admit(waiter, again)
        timers: list[asyncio.TimerHandle] = []
        if deadline is not None:
            timers.append(loop.call_later(deadline - monotonic(), self._expire, waiter, timeout))
        if not waiter.ripe:
            timers.append(loop.call_later(self.config.warm_wait, self._ripen, waiter))
        try:
            return await waiter.future
        except BaseException:
            self.waiters.drop(waiter)
            if member := waiter.late_answer():
                self.give_back(member)
            raise
        finally:
            for timer in timers:
                timer.cancel()

    def _admit(self, waiter: Waiter, again: bool) -> None:
        below = len(self.members) < self._max
        if not again and self.members and self._line_is_full() and not (below and self.can_start()):
            self.refused += 1
            raise PoolAtCapacity(
                f'Pool "{self.name}" is at capacity: {len(self.members)} agents, {len(self.waiters)} requests in line. '
                "Try again later, or raise max_size or max_waiting."
            )
        self.waiters.add(waiter, first=again)
        if below or self.starting:
            self.fill()

    def _line_is_full(self) -> bool:
        """Tell whether no more may wait; those for whom an agent is being made do not count."""
        most = self.config.max_waiting
        return self.waiters.count >= most and sum(not waiter.spawning for waiter in self.waiters) >= most

    def _expire(self, waiter: Waiter, timeout: float | None) -> None:
        if not waiter.future.done():
            self.timed_out += 1
            self.waiters.drop(waiter)
            waiter.fail(AcquireTimeout(self.name, timeout or 0.0))

    def _ripen(self, waiter: Waiter) -> None:
        waiter.ripe = True
        self.fill()

    async def _is_healthy(self, member: Member, deadline: float | None) -> bool:
        """Ask an agent that this request holds; False: it was ended or given back, and another must be found."""
        limit = self.config.health_timeout
        allowed = limit if deadline is None else max(0.0, min(limit, deadline - monotonic()))
        call = member.instance.ask_health(allowed)
        try:
            ended = await call.result()
        except asyncio.CancelledError:
            self.give_back(member)
            raise
        if ended.well and ended.value and not self.closing:
            return True
        if allowed < limit and ended.why and ended.kind != "abandoned":
            self.give_back(member)  # it was the request that had no time left
            return False
        member.instance.break_("healthy() said no" if ended.well else ended.describe("healthy()"))
        self.give_back(member)
        return False

    def check_loop(self) -> None:
        """Refuse callers from other loops and threads: nothing here is locked."""
        if self.loop is None:
            raise PoolClosed(f'Pool "{self.name}" is not open: use "async with pool:" or await pool.open()')
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(f'pool "{self.name}" belongs to another event loop: from other threads use SyncPool')
