"""Every change of state goes through here: checked, counted, told to those who listen.

How many agents are in a state is the steps into it minus those out of it, so nothing else is counted on the way of an
acquire, and a snapshot costs the same for ten agents and for ten thousand.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import msgspec

from agentpool.clock import wall_ms
from agentpool.pool.states import GIVEN_BACK, LEASED, MOVES, Move, PooledState, move, refuse

if TYPE_CHECKING:
    from agentpool.pool.member import Member

__all__ = ["Ledger", "PoolEvent"]

log = logging.getLogger(__name__)

EVENTS_WAITING_MAX = 10_000
"""Events kept for a subscriber who does not read; older ones are dropped."""


class PoolEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one agent's state; `source` is None when the agent was just made."""

    agent_id: str
    source: PooledState | None
    target: PooledState
    reason: str
    at_ms: int


class Ledger:
    """Counters of steps, and listeners."""

    def __init__(self) -> None:
        self.steps = [0] * len(MOVES)
        self.spawned = 0
        self.recycled = 0
        self.last_scale_ms: int | None = None
        self.last_scale_direction: str | None = None
        self._listeners: list[Callable[[PoolEvent], None]] = []

    def enter(self, member: "Member", reason: str) -> None:
        """Count an agent that was just made."""
        self.spawned += 1
        self._scaled("UP")
        self._tell(member.id, None, member.state, reason)

    def move(self, member: "Member", step: Move, reason: str = "") -> None:
        """Take a step; raises `IllegalMove` and changes nothing when the agent is not where it begins."""
        if member.state is not step.source:
            raise refuse(member.id, member.state, step)
        member.state = step.target
        self.steps[step.index] += 1
        if self._listeners:
            self._tell(member.id, step.source, step.target, reason)

    def hand_over(self, member: "Member") -> None:
        """Take the two steps from one holder to the next, with nothing in between."""
        if member.state is not GIVEN_BACK.source or self._listeners:
            self.move(member, GIVEN_BACK)
            self.move(member, LEASED)
        else:
            self.steps[GIVEN_BACK.index] += 1
            self.steps[LEASED.index] += 1

    def end(self, member: "Member", reason: str) -> None:
        """Move an agent to its end from wherever it is."""
        self.move(member, move(member.state, PooledState.TERMINATED, member.id), reason)
        self._scaled("DOWN")

    def transitions(self) -> dict[str, int]:
        """Return how often each step was taken, as `{"idle → active": 12, …}`."""
        return {f"{step.source} → {step.target}": self.steps[step.index] for step in MOVES}

    def count(self, state: PooledState) -> int:
        """Return how many agents are in a state, or ended up in it."""
        entered = self.spawned if state is PooledState.STARTING else 0
        into = sum(self.steps[step.index] for step in MOVES if step.target is state)
        return entered + into - sum(self.steps[step.index] for step in MOVES if step.source is state)

    # -- listeners ----------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[PoolEvent], None]) -> Callable[[], None]:
        """Call `listener` at each change, in the loop; returns what ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    async def events(self) -> AsyncIterator[PoolEvent]:
        """Yield changes from now on."""
        waiting: asyncio.Queue[PoolEvent] = asyncio.Queue()

        def keep(event: PoolEvent) -> None:
            if waiting.qsize() >= EVENTS_WAITING_MAX:
                waiting.get_nowait()
            waiting.put_nowait(event)

        unsubscribe = self.subscribe(keep)
        try:
            while True:
                yield await waiting.get()
        finally:
            unsubscribe()

    def _tell(self, agent_id: str, source: PooledState | None, target: PooledState, reason: str) -> None:
        if not self._listeners:
            return
        event = PoolEvent(agent_id=agent_id, source=source, target=target, reason=reason, at_ms=wall_ms())
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                log.exception("pool.listener_failed", extra={"agent_id": agent_id})

    def _scaled(self, direction: str) -> None:
        self.last_scale_ms, self.last_scale_direction = wall_ms(), direction
