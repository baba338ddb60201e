"""Makes agents: for those who wait, and ahead of them. Behind a breaker, so that what cannot start is not hammered."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from itertools import islice

import msgspec

from agentpool.clock import monotonic
from agentpool.policy.breaker import (
    Breaker,
    BreakerSettings,
    after_failure,
    after_success,
    may_try,
    retry_in,
    with_trial,
)
from agentpool.policy.recycling import Quota, jittered
from agentpool.pool.calls import Call, Ended
from agentpool.pool.core import Core
from agentpool.pool.errors import SpawnCircuitOpen, StartFailed
from agentpool.pool.instance import Instance
from agentpool.pool.member import Member
from agentpool.pool.states import STARTED, PooledState
from agentpool.pool.waiting import Waiter
from agentpool.protocol.codec import new_id

__all__ = ["Spawner"]

log = logging.getLogger(__name__)


class Spawner:
    """What is wanted follows from the line and the idle agents; those under way are counted before more are begun."""

    def __init__(self, core: Core) -> None:
        self._core, config = core, core.config
        self._settings = BreakerSettings(
            failures_max=config.breaker_failures,
            backoff=config.breaker_backoff,
            backoff_max=config.breaker_backoff_max,
        )
        self._quota = Quota(
            requests=min(
                (bound for bound in (config.recycle_threshold, config.requests_per_quota) if bound), default=None
            ),
            age=config.max_instance_age,
            memory_mb=config.max_memory_mb,
            cpu_percent=config.max_cpu_percent,
        )
        self.breaker = Breaker()
        self.failures = 0
        self.last_failure: StartFailed | None = None
        self._starting = core.starting
        self._owners: dict[Member, Waiter] = {}
        self._timer: asyncio.TimerHandle | None = None

    def fill(self) -> None:
        """Begin making what is wanted, as far as there is room and the breaker permits."""
        core = self._core
        if core.closing:
            return
        self._give_orphans_to_those_who_wait()
        for owner in self._wanted():
            if not self.can_start():
                self._wait_for_breaker()
                return
            self.begin(owner)

    def can_start(self) -> bool:
        """Tell whether the breaker permits a start now."""
        return may_try(self.breaker, monotonic())

    def begin(
        self, owner: Waiter | None = None, *, id: str = "", state: msgspec.Raw | None = None
    ) -> tuple[Member, Call]:
        """Reserve a place and begin making an agent; `owner` is told when that fails."""
        core = self._core
        self.breaker = with_trial(self.breaker)
        instance = self.new_instance(id or self.new_agent_id())
        member = Member(instance.id, instance, self.new_quota(), monotonic())
        core.members[member.id] = member
        core.empty.clear()
        core.ledger.enter(member, "for a request" if owner else "ahead of requests")
        self._own(member, owner)
        call = self._starting[member] = instance.start(state)
        call.then(partial(self._started, member))
        return member, call

    def new_agent_id(self) -> str:
        """Return an id that no agent had before."""
        return f"{self._core.name}/{new_id()}"

    def new_instance(self, id: str) -> Instance:
        """Return an agent that is not started yet."""
        core = self._core
        return Instance(core.type, core.config, id, core.make_context, core.broke)

    def new_quota(self) -> Quota:
        """Return the quota of one agent: the pool's, a little lower."""
        return jittered(self._quota, self._core.config.recycle_jitter * self._core.random.uniform(0.4, 1.0))

    def note_success(self) -> None:
        """Close the breaker: agents can be started."""
        self.breaker = after_success(self.breaker)

    def note_failure(self, agent_id: str, reason: str) -> StartFailed:
        """Count a failed start, and tell the breaker."""
        self.failures += 1
        self.breaker = after_failure(self.breaker, self._settings, monotonic(), self._core.random.random())
        self.last_failure = StartFailed(agent_id, reason)
        log.warning("pool.start_failed", extra={"agent_id": agent_id, "error": reason})
        return self.last_failure

    def circuit_open(self) -> SpawnCircuitOpen:
        """Return the error for those who cannot be served while the breaker is open."""
        reason = self.last_failure.reason if self.last_failure else "unknown"
        return SpawnCircuitOpen(
            self._core.name, self.breaker.failures, retry_in(self.breaker, monotonic()), reason
        )  # fmt: skip

    def under_way(self) -> list[Call]:
        """Return the starts under way."""
        return list(self._starting.values())

    def stop(self) -> None:
        """Begin nothing more, and cancel what is under way."""
        if self._timer:
            self._timer.cancel()
        for call in self.under_way():
            call.stop("the pool is closed")

    # -- what is wanted -----------------------------------------------------------------------------------------

    def _wanted(self) -> Sequence[Waiter | None]:
        core, config = self._core, self._core.config
        room = config.max_size - len(core.members)
        if room <= 0:
            return ()
        alone = (waiter for waiter in core.waiters if waiter.ripe and not waiter.spawning and not waiter.future.done())
        owners = list(islice(alone, room))
        ahead = len(core.idle) + len(self._starting) - len(self._owners)
        spare = min(config.min_size - ahead, room - len(owners))
        return [*owners, *[None] * max(0, spare)]

    def _give_orphans_to_those_who_wait(self) -> None:
        """An agent under way whose request was served otherwise, or left, is meant for the next without one."""
        for member, owner in list(self._owners.items()):
            if owner.future.done():
                del self._owners[member]
        if len(self._owners) == len(self._starting) or not self._core.waiters:
            return
        alone = (waiter for waiter in self._core.waiters if not waiter.spawning and not waiter.future.done())
        orphans = [member for member in self._starting if member not in self._owners]
        for member, waiter in zip(orphans, list(islice(alone, len(orphans))), strict=False):
            self._own(member, waiter)

    def _own(self, member: Member, owner: Waiter | None) -> None:
        if owner:
            owner.spawning = True
            self._owners[member] = owner

    # -- what comes of it ---------------------------------------------------------------------------------------

    def _started(self, member: Member, ended: Ended) -> None:
        core = self._core
        del self._starting[member]
        owner = self._owners.pop(member, None)
        if owner:
            owner.spawning = False
        if member.state is not PooledState.STARTING:
            return
        if core.closing:
            core.end(member, "the pool is closed")
        elif ended.well and not member.instance.broken:
            self.note_success()
            member.last_used = monotonic()
            core.ledger.move(member, STARTED)
            core.offer(member, fresh=True)
        else:
            error = self.note_failure(member.id, member.instance.broken or ended.describe("start()"))
            core.end(member, error.reason)
            if owner:
                core.waiters.drop(owner)
                owner.fail(error)
        self.fill()

    def _wait_for_breaker(self) -> None:
        core, now = self._core, monotonic()
        if not core.members:
            # Nobody can give an agent back, so waiting is of no use.
            while waiter := core.waiters.pop():
                waiter.fail(self.circuit_open())
        if self._timer:
            self._timer.cancel()
        if not self.breaker.trial:
            self._timer = asyncio.get_running_loop().call_later(retry_in(self.breaker, now) + 0.001, self.fill)
