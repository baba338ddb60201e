"""The states of a pooled agent as a table, made of the agents' own in `protocol.states`, and `starting`.

A `Move` is a legal step, looked up once at import; applying it costs two comparisons, which matters on the way of
every acquire.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from agentpool.protocol.states import AGENT_MOVES, AgentStatus, IllegalMove, check_move

__all__ = ["MOVES", "POOLED_MOVES", "Move", "PooledState", "move"]


class PooledState(StrEnum):
    """Where an agent of an in-process pool is."""

    STARTING = "starting"
    IDLE = "idle"
    ACTIVE = "active"
    RECYCLING = "recycling"
    TERMINATED = "terminated"


S = PooledState


def _moves_from(state: PooledState) -> frozenset[PooledState]:
    """Return the part of the agents' table that a pool without places uses."""
    return frozenset(S(target) for target in AGENT_MOVES[AgentStatus(state)] if target in {str(known) for known in S})


POOLED_MOVES: Mapping[PooledState, frozenset[PooledState]] = {
    S.STARTING: frozenset({S.IDLE, S.TERMINATED}),
    **{state: _moves_from(state) for state in (S.IDLE, S.ACTIVE, S.RECYCLING, S.TERMINATED)},
}


class Move:
    """A legal step; `index` is its place in a list of counters."""

    __slots__ = ("index", "source", "target")

    def __init__(self, index: int, source: PooledState, target: PooledState) -> None:
        self.index, self.source, self.target = index, source, target


MOVES: Final = tuple(
    Move(index, source, target)
    for index, (source, target) in enumerate(
        (source, target) for source, targets in POOLED_MOVES.items() for target in sorted(targets)
    )
)
_BY_ENDS: Final = {(found.source, found.target): found for found in MOVES}


def move(source: PooledState, target: PooledState, id: str = "a pooled agent") -> Move:
    """Return the step; raises `IllegalMove` naming from, to and id when the table has none."""
    check_move(POOLED_MOVES, source, target, id)
    return _BY_ENDS[source, target]


def refuse(id: str, state: PooledState, step: Move) -> IllegalMove:
    """Return the error for a step that does not begin where the agent is."""
    return IllegalMove(f"{id}: no move from {state} to {step.target} by {step.source} → {step.target}")


LEASED: Final = move(S.IDLE, S.ACTIVE)
GIVEN_BACK: Final = move(S.ACTIVE, S.IDLE)
STARTED: Final = move(S.STARTING, S.IDLE)
REPLACED: Final = move(S.RECYCLING, S.IDLE)
