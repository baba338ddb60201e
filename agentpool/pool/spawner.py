"""Makes agents: for those who wait, and ahead of them, as far as there is room and the circuit permits."""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import islice

import msgspec

from agentpool.clock import monotonic
from agentpool.errors import PoolClosed
from agentpool.policy.recycling import Quota, jitter_part, jittered
from agentpool.pool.calls import Call, Ended
from agentpool.pool.core import Core
from agentpool.pool.instance import Instance
from agentpool.pool.member import Member
from agentpool.pool.states import STARTED
from agentpool.pool.waiting import Waiter
from agentpool.protocol.codec import new_id

__all__ = ["Spawner"]


class Spawner:
    """What is wanted follows from the line and the idle agents; those under way are counted before more are begun."""

    def __init__(self, core: Core) -> None:
        self._core, config = core, core.config
        self._quota = Quota(
            requests=min(
                (bound for bound in (config.recycle_threshold, config.requests_per_quota) if bound), default=None
            ),
            age=config.max_instance_age,
            memory_mb=config.max_memory_mb,
            cpu_percent=config.max_cpu_percent,
        )
        self._starting = core.starting
        self._owners: dict[Member, Waiter] = {}
        self._timer: asyncio.TimerHandle | None = None

    def fill(self) -> None:
        """Begin making what is wanted, as far as there is room and the circuit permits."""
        core = self._core
        if core.closing:
            return
        self._give_orphans_to_those_who_wait()
        for owner in self._wanted():
            if not core.circuit.permits():
                self._wait_for_circuit()
                return
            self.begin(owner)

    def begin(
        self, owner: Waiter | None = None, *, id: str = "", state: msgspec.Raw | None = None
    ) -> tuple[Member, Call]:
        """Reserve a place and begin making an agent; `owner` is told when that fails."""
        core = self._core
        instance = self.new_instance(id or self.new_agent_id())
        member = Member(instance.id, instance, self.new_quota(), monotonic())
        core.admit(member, "for a request" if owner else "ahead of requests")
        self._own(member, owner)
        call = self._starting[member] = self.start(instance, state)
        call.then(partial(self._started, member))
        return member, call

    def start(self, instance: Instance, state: msgspec.Raw | None = None) -> Call:
        """Begin to start an agent."""
        self._core.circuit.note_begin()
        return instance.start(state)

    def new_agent_id(self) -> str:
        """Return an id that no agent had before."""
        return f"{self._core.name}/{new_id()}"

    def new_instance(self, id: str) -> Instance:
        """Return an agent that is not started yet."""
        core = self._core
        return Instance(core.type, core.config, id, core.make_context, core.broke)

    def new_quota(self) -> Quota:
        """Return the quota of one agent: the pool's, a little lower."""
        core = self._core
        return jittered(self._quota, jitter_part(core.config.recycle_jitter, core.random.random()))

    async def warm(self) -> int:
        """Wait until `min_size` agents are idle, as far as there is room; raises why they cannot be started."""
        core = self._core
        while True:
            self.fill()
            lacking = len(core.idle) < core.config.min_size
            if core.closing:
                raise PoolClosed(f'Pool "{core.name}" was closed while it warmed.')
            if calls := self.under_way():
                await calls[0].ended()
            elif lacking and core.room <= 0 and core.leaving.places:
                await asyncio.wait(core.leaving.tasks, return_when=asyncio.FIRST_COMPLETED)
            elif lacking and core.room > 0:
                raise core.circuit.error()
            else:
                return len(core.idle)

    # -- starts under way ---------------------------------------------------------------------------------------

    def under_way(self) -> list[Call]:
        """Return the starts under way."""
        return list(self._starting.values())

    @property
    def unclaimed(self) -> int:
        """How many agents are being made for which nobody waits; the next requests take them."""
        return max(0, len(self._starting) - self._core.waiters.count)

    def count_wanted(self) -> int:
        """Return for how many that wait an agent is being made."""
        return sum(not owner.future.done() for owner in self._owners.values())

    def is_wanted(self, member: Member) -> bool:
        """Tell whether a request waits for this agent, which is being made."""
        owner = self._owners.get(member)
        return owner is not None and not owner.future.done()

    def call_off_one(self, reason: str) -> bool:
        """End the agent last begun if fewer wait than are being made; False when all of them are wanted."""
        if not self.unclaimed:
            return False
        self.call_off(next(reversed(self._starting)), reason)
        return True

    def call_off(self, member: Member, reason: str) -> "asyncio.Task[None]":
        """End an agent that is being made; who waits for it waits for another. Nothing is begun in its place."""
        self._disown(member)
        task = self._core.end(member, reason, refill=False)
        self._core.circuit.note_called_off()
        self._give_orphans_to_those_who_wait()
        return task

    def stop(self) -> None:
        """Begin nothing more, and cancel what is under way."""
        if self._timer:
            self._timer.cancel()
        for call in self.under_way():
            call.stop("the pool is closed")

    # -- what is wanted -----------------------------------------------------------------------------------------

    def _wanted(self) -> Sequence[Waiter | None]:
        core, config = self._core, self._core.config
        room = core.room
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

    def _disown(self, member: Member) -> Waiter | None:
        owner = self._owners.pop(member, None)
        if owner:
            owner.spawning = False
        return owner

    # -- what comes of it ---------------------------------------------------------------------------------------

    def _started(self, member: Member, ended: Ended) -> None:
        core = self._core
        if self._starting.pop(member, None) is None:
            return  # it was called off
        owner = self._disown(member)
        if core.closing:
            core.end(member, "the pool is closed")
        elif ended.well and not member.instance.broken:
            core.circuit.note_start()
            member.last_used = monotonic()
            member.ready()
            core.ledger.move(member, STARTED)
            core.offer(member, fresh=True)
        else:
            error = core.circuit.note_failure(member.instance, ended)
            core.end(member, error.reason)
            if owner:
                core.waiters.drop(owner)
                owner.fail(error)
        self.fill()

    def _wait_for_circuit(self) -> None:
        core = self._core
        if not core.members:
            # Nobody can give an agent back, so waiting is of no use.
            while waiter := core.waiters.pop():
                waiter.fail(core.circuit.error())
        if self._timer:
            self._timer.cancel()
        delay = core.circuit.retry_in()
        if delay is not None:
            self._timer = asyncio.get_running_loop().call_later(delay + 0.001, self.fill)
