"""What is measured of a fault, and what explains that a worker was given up."""

import pytest
from chaos.aftermath import Probe, excuse, is_alone, led_again, longest_gap, percentile, tasks_again
from chaos.effects import Effect, Effects
from chaos.faults import Done
from chaos.history import Loss
from chaos.schedule import Fault, Kind, Timing


def _done(kind: Kind, began: float, ended: float, **facts: object) -> Done:
    return Done(Fault(0, kind, 0.0, ended - began, 0.5, 0.5), began, ended, ended, **facts)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_a_fault_is_alone_when_no_other_is_near() -> None:
    fault = _done(Kind.WORKER_KILL, 10.0, 10.0)
    assert is_alone(fault, [fault, _done(Kind.SCRIPT_FLUSH, 7.0, 7.0), _done(Kind.SCRIPT_FLUSH, 12.0, 12.0)])
    assert not is_alone(fault, [fault, _done(Kind.SERVER_STOP, 5.0, 9.0)])
    assert not is_alone(fault, [fault, _done(Kind.SCRIPT_FLUSH, 11.0, 11.0)])


def test_tasks_run_again_from_the_kill_to_their_next_beginning() -> None:
    effects = Effects()
    for of, task, worker, at in (
        ("r1", "p/t1", "w1", 9.9),
        ("r2", "p/t1", "w2", 10.03),
        ("r3", "p/t2", "w1", 9.5),
        ("r4", "p/t2", "w2", 10.08),
        ("r5", "p/t3", "w3", 9.9),
    ):
        effects.take(Effect("begin", of, at, task=task, worker=worker))
    assert tasks_again(_done(Kind.WORKER_KILL, 10.0, 10.0, workers=["w1"]), effects) == pytest.approx([0.03, 0.08])


def test_a_pool_is_led_again_by_a_new_fence() -> None:
    fault = _done(Kind.LEADER_KILL, 10.0, 12.0, leader_fence=5)
    assert led_again(fault, [(9.0, 5), (10.1, 5), (11.5, 6)]) == 1.5
    assert led_again(fault, [(9.0, 5)]) is None


def test_the_longest_gap_begins_with_the_fault() -> None:
    probes = [Probe(at - 0.01, at) for at in (9.9, 10.2, 12.2, 12.3, 13.0)]
    assert longest_gap(_done(Kind.SERVER_STOP, 10.0, 12.0), probes, 1.5) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("fault", "explains"),
    [
        (_done(Kind.WORKER_KILL, 99.0, 99.0, workers=["w1"]), True),
        (_done(Kind.WORKER_KILL, 99.0, 99.0, workers=["w2"]), False),
        (_done(Kind.WORKER_KILL, 101.0, 101.0, workers=["w1"]), False),
        (_done(Kind.WORKER_STOP, 98.0, 99.0, workers=["w1"]), False),
        (_done(Kind.WORKER_FREEZE, 94.0, 101.0, workers=["w1"]), True),
        (_done(Kind.PARTITION_LONG, 92.0, 98.0, hosts=["host-1"]), True),
        (_done(Kind.PARTITION_LONG, 92.0, 98.0, hosts=["host-2"]), False),
        (_done(Kind.PARTITION_LONG, 70.0, 76.0, hosts=["host-1"]), False),
        (_done(Kind.SERVER_FREEZE, 70.0, 100.0, server=True), False),
        (_done(Kind.LEADER_KILL, 99.0, 100.0, hosts=["host-1"]), False),
    ],
)
def test_a_loss_is_explained_by_what_was_done_to_its_worker(fault: Done, explains: bool) -> None:
    loss = Loss("w1", 100.0, "no heartbeat for 4 s", "host-1")
    assert bool(excuse(loss, [fault], Timing(), was_ready=True)) == explains
