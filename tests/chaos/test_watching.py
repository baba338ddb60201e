"""What the doctor says counts when it stands."""

from chaos.watching import STANDS_DEFAULT_S, STANDS_S, Standing

from agentpool.doctor import Violation


def _fault(invariant: int, subject: str) -> Violation:
    return Violation(invariant, "", subject, "wrong")


def test_what_passes_by_itself_is_a_suspicion_only() -> None:
    standing = Standing()
    standing.note(0.0, [_fault(3, "task")])
    standing.note(1.0, [])
    standing.note(STANDS_DEFAULT_S, [_fault(3, "task")])
    assert (standing.violations, standing.seen) == ({}, 2)


def test_what_stands_is_a_violation_and_beats_may_take_longer() -> None:
    standing = Standing()
    faults = [_fault(3, "task"), _fault(6, "worker")]
    standing.note(0.0, faults)
    standing.note(STANDS_DEFAULT_S, faults)
    assert set(standing.violations) == {(3, "task")}
    standing.note(STANDS_S[6], faults)
    assert set(standing.violations) == {(3, "task"), (6, "worker")}
