"""A seed says it all, and every kind comes."""

import itertools

import pytest
from chaos.schedule import LONG_FREEZE_S, SERVER_KINDS, Kind, make_schedule

SEEDS = range(20)


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert make_schedule(1, 600) == make_schedule(1, 600)
    assert make_schedule(1, 600) != make_schedule(2, 600)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_minutes_have_every_kind_and_end_in_time(seed: int) -> None:
    faults = make_schedule(seed, 600)
    assert {fault.kind for fault in faults} == set(Kind)
    assert [fault.number for fault in faults] == list(range(len(faults)))
    assert faults == sorted(faults, key=lambda fault: fault.at)
    assert max(fault.ends for fault in faults) <= 600


@pytest.mark.parametrize("seed", SEEDS)
def test_half_an_hour_has_300_faults_and_one_long_freeze(seed: int) -> None:
    faults = make_schedule(seed, 1800)
    assert len(faults) >= 300
    assert [fault.seconds for fault in faults if fault.kind is Kind.SERVER_FREEZE] == [LONG_FREEZE_S]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_work_on_the_server_at_once_and_nothing_beside_the_long_freeze(seed: int) -> None:
    faults = make_schedule(seed, 1800)
    on_server = [fault for fault in faults if fault.kind in SERVER_KINDS]
    for before, after in itertools.pairwise(on_server):
        assert before.ends <= after.at
    freeze = next(fault for fault in faults if fault.kind is Kind.SERVER_FREEZE)
    assert all(other.ends < freeze.at or other.at > freeze.ends for other in faults if other is not freeze)


def test_a_short_run_has_no_long_freeze() -> None:
    assert Kind.SERVER_FREEZE not in {fault.kind for fault in make_schedule(1, 300)}
