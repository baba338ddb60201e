"""States as tables: what may follow what, and what is refused."""

import pytest

from agentpool.protocol.states import (
    AGENT_MOVES,
    OUTCOMES,
    TASK_MOVES,
    WORKER_MOVES,
    AgentStatus,
    IllegalMove,
    TaskStatus,
    WorkerStatus,
    check_move,
)

TABLES = [(WorkerStatus, WORKER_MOVES), (AgentStatus, AGENT_MOVES), (TaskStatus, TASK_MOVES)]


@pytest.mark.parametrize(("states", "moves"), TABLES)
def test_each_state_has_a_row_and_can_be_reached(states, moves) -> None:
    assert set(moves) == set(states)
    first = next(iter(states))
    reached = {first}
    while more := {target for state in reached for target in moves[state]} - reached:
        reached |= more
    assert reached == set(states)


@pytest.mark.parametrize(("states", "moves"), TABLES)
def test_each_allowed_move_returns_its_target_and_each_other_raises(states, moves) -> None:
    for source in states:
        for target in states:
            if target in moves[source]:
                assert check_move(moves, source, target, "x") is target
            else:
                with pytest.raises(IllegalMove):
                    check_move(moves, source, target, "x")


def test_illegal_move_names_from_to_and_id() -> None:
    with pytest.raises(IllegalMove, match=r"^p/a1: no move from terminated to idle$"):
        check_move(AGENT_MOVES, AgentStatus.TERMINATED, AgentStatus.IDLE, "p/a1")


def sources(moves, target) -> set:
    """The states from which the target may be reached."""
    return {source for source, targets in moves.items() if target in targets}


def test_ends_are_final() -> None:
    final = {state for _, moves in TABLES for state in moves if not moves[state]}
    assert final == OUTCOMES | {
        WorkerStatus.STOPPED,
        WorkerStatus.LOST,
        AgentStatus.TERMINATED,
        AgentStatus.FAILED,
    }


def test_any_worker_may_be_lost_and_any_agent_may_be_moved_or_ended() -> None:
    alive = {WorkerStatus.ORDERED, WorkerStatus.STARTING, WorkerStatus.READY, WorkerStatus.DRAINING}
    assert sources(WORKER_MOVES, WorkerStatus.LOST) == alive
    held = {AgentStatus.PLACED, AgentStatus.IDLE, AgentStatus.ACTIVE, AgentStatus.RECYCLING}
    assert sources(AGENT_MOVES, AgentStatus.PENDING) == held
    assert sources(AGENT_MOVES, AgentStatus.TERMINATED) == held | {AgentStatus.PENDING}
