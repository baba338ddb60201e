"""Replaces agents that have done enough, a few at a time, without a gap.

The successor is started while the old agent still serves. When it is ready and nobody holds the old one, what that
wants to keep goes over (`snapshot`, `restore`), and only then does the old one stop. Until that moment any failure
leaves the old agent in service, and it is tried again later.
"""

import asyncio
import logging
from functools import partial

from agentpool.clock import monotonic
from agentpool.policy.recycling import next_to_recycle, reason_to_recycle
from agentpool.pool.calls import Ended
from agentpool.pool.core import Core
from agentpool.pool.instance import Instance, facts_of_failure
from agentpool.pool.member import Member
from agentpool.pool.spawner import Spawner
from agentpool.pool.states import REPLACED, STARTED, PooledState, move

__all__ = ["Recycler"]

log = logging.getLogger(__name__)


class Recycler:
    """`recycles_at_once` bounds those from the start of the successor until one of the two has stopped."""

    def __init__(self, core: Core, spawner: Spawner) -> None:
        self._core, self._spawner = core, spawner
        self._due: dict[Member, None] = {}
        self._under_way: set[Member] = set()
        self._starting: set[Instance] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        """How many agents are being replaced, those included whose successor still starts."""
        return len(self._under_way)

    def consider(self, member: Member, now: float) -> None:
        """Note an agent that is due, and begin with it if the budget permits."""
        if member.due or self._core.closing:
            return
        instance = member.instance
        reason = reason_to_recycle(
            member.quota, instance.requests, now - instance.born, member.memory_mb, member.cpu_percent
        )
        if reason:
            self.mark(member, reason)

    def mark(self, member: Member, reason: str) -> None:
        """Note that an agent shall be replaced."""
        if not member.due:
            member.due = reason
            self._due[member] = None
            self.begin_next()

    def begin_next(self) -> None:
        """Begin with as many as the budget and the circuit permit."""
        core = self._core
        self._due = {member: None for member in self._due if member.state is not PooledState.TERMINATED}
        due = [member for member in self._due if member not in self._under_way]
        for member in next_to_recycle(due, len(self._under_way), core.config.recycles_at_once):
            if core.closing or not core.circuit.permits():
                return
            del self._due[member]
            self._prepare(member)

    def _prepare(self, member: Member) -> None:
        most = self._core.config.max_recycles
        worn_out = most is not None and member.recycles >= most
        successor = self._spawner.new_instance(self._spawner.new_agent_id() if worn_out else member.id)
        self._under_way.add(member)
        self._starting.add(successor)
        self._spawner.start(successor).then(partial(self._prepared, member, successor))

    def _prepared(self, member: Member, successor: Instance, ended: Ended) -> None:
        core = self._core
        self._starting.discard(successor)
        if core.closing:
            return  # it is seen off
        if not ended.well:
            core.circuit.note_failure(successor, ended)
            self.give_up(member, successor)
        elif member.state is PooledState.TERMINATED:
            core.circuit.note_start()
            self.give_up(member, successor)
        else:
            core.circuit.note_start()
            member.successor = successor
            member.look()
            if member.state is PooledState.IDLE:
                core.idle.remove(member)
                self.swap(member)
        self._spawner.fill()  # somebody may wait for what the circuit says now

    def give_up(self, member: Member, successor: Instance) -> None:
        """Leave the old agent as it is. If that is in service, it is found due again at a later look."""
        member.successor = None
        member.look()
        self._core.leaving.see_off(successor).add_done_callback(lambda _: self._gave_up(member))

    def stop(self) -> None:
        """Begin nothing more, and see off the successors that are being started."""
        for successor in self._starting:
            self._core.leaving.see_off(successor)

    def _gave_up(self, member: Member) -> None:
        member.due = ""
        self._done(member)

    def _done(self, member: Member) -> None:
        self._under_way.discard(member)
        self.begin_next()

    # -- the change ---------------------------------------------------------------------------------------------

    def swap(self, member: Member) -> None:
        """Begin to replace an agent that nobody holds by its successor, which is ready."""
        self._core.ledger.move(member, move(member.state, PooledState.RECYCLING, member.id), member.due)
        task = asyncio.create_task(self._swap(member), name=f"recycle {member.id}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _swap(self, member: Member) -> None:
        core, old, new = self._core, member.instance, member.successor
        assert new is not None
        refused = await self._hand_over(old, new) if new.id == old.id else ""
        if member.state is not PooledState.RECYCLING:
            return  # the pool was closed, and has seen off both
        if new.broken:
            refused = new.broken
            core.circuit.note_broken(new)
        if refused:
            log.warning("pool.recycle_failed", extra=facts_of_failure(member.id, refused, new.traceback))
            self.give_up(member, new)
            core.ledger.move(member, REPLACED, "kept: its successor could not be used")
            self._return_to_service(member)
            return
        core.ledger.recycled += 1
        if new.id == old.id:
            member.adopt(new, self._spawner.new_quota())
            core.leaving.see_off(old)
            core.ledger.move(member, REPLACED, "replaced")
            self._return_to_service(member)
        else:
            self._retire(member, new)
        await old.close()
        self._done(member)

    async def _hand_over(self, old: Instance, new: Instance) -> str:
        """Move what the agent wants to keep; returns why that failed."""
        state = await old.snapshot()
        if state is None or not new.type.has_restore:
            return ""
        ended = await new.restore(state)
        return "" if ended.well else ended.describe("restore()")

    def _retire(self, member: Member, new: Instance) -> None:
        """End an agent that was recycled often enough; its successor is a new one in every respect."""
        core, member.successor = self._core, None
        newcomer = Member(new.id, new, self._spawner.new_quota(), monotonic())
        core.end(member, "recycled often enough", overlaps=True)
        newcomer.ready()
        core.admit(newcomer, "in the place of a worn-out agent")
        core.ledger.move(newcomer, STARTED)
        self._return_to_service(newcomer)

    def _return_to_service(self, member: Member) -> None:
        if member.instance.broken:
            self._core.end(member, member.instance.broken)
            self._spawner.fill()
        else:
            self._core.offer(member)
