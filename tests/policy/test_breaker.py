"""The breaker: closed, open, one trial."""

from itertools import pairwise

from agentpool.policy.breaker import (
    Breaker,
    BreakerSettings,
    after_early_end,
    after_failure,
    after_start,
    after_success,
    may_try,
    retry_in,
    with_trial,
    without_trial,
)

SETTINGS = BreakerSettings(failures_max=3, backoff=1.0, backoff_max=5.0)


def opened(openings: int = 1) -> Breaker:
    breaker, now = Breaker(), 0.0
    for _ in range(SETTINGS.failures_max):
        breaker = after_failure(breaker, SETTINGS, now, 0.0)
    for _ in range(openings - 1):
        now = breaker.open_until or 0.0
        breaker = after_failure(with_trial(breaker), SETTINGS, now, 0.0)
    return breaker


def test_it_opens_after_a_number_of_failures_in_a_row() -> None:
    breaker = Breaker()
    for count in (1, 2):
        breaker = after_failure(breaker, SETTINGS, 0.0, 0.0)
        assert may_try(breaker, 0.0), count
    breaker = after_failure(breaker, SETTINGS, 10.0, 0.0)
    assert not may_try(breaker, 10.9)
    assert (retry_in(breaker, 10.0), retry_in(breaker, 12.0)) == (1.0, 0.0)


def test_when_the_time_is_over_one_trial_may_begin() -> None:
    breaker = opened()
    assert may_try(breaker, 1.0)
    assert not may_try(with_trial(breaker), 1.0)


def test_each_failed_trial_doubles_the_delay_up_to_the_longest() -> None:
    ends = [opened(n).open_until or 0.0 for n in (1, 2, 3, 4, 5)]
    assert [round(later - earlier) for earlier, later in zip([0.0, *ends], ends, strict=False)] == [1, 2, 4, 5, 5]


def test_jitter_takes_up_to_half_away() -> None:
    two = after_failure(after_failure(Breaker(), SETTINGS, 0, 0), SETTINGS, 0, 0)
    assert after_failure(two, SETTINGS, 0.0, 1.0).open_until == 0.5


def test_tries_from_before_it_opened_do_not_lengthen_the_delay() -> None:
    breaker = after_failure(opened(), SETTINGS, 0.5, 0.0)
    assert (breaker.open_until, breaker.failures) == (1.0, 4)


def test_one_good_start_closes_it() -> None:
    assert after_start(opened(3), 9.0) == Breaker()
    assert after_success(opened(3)) == Breaker()
    assert with_trial(Breaker()) == Breaker()
    assert retry_in(Breaker(), 5.0) == 0.0


def test_a_trial_that_was_called_off_leaves_room_for_another() -> None:
    assert may_try(without_trial(with_trial(opened())), 1.0)
    assert without_trial(Breaker()) == Breaker()


def broke_at_once(times: int, life: float = 0.1) -> tuple[Breaker, list[float]]:
    """Start whenever that is permitted, and break after `life` s; returns the times of the starts, too."""
    breaker, now, starts = Breaker(), 0.0, []
    for _ in range(times):
        now += retry_in(breaker, now)
        assert may_try(breaker, now)
        starts.append(round(now, 1))
        breaker = after_start(with_trial(breaker), now)
        now += life
        breaker = after_early_end(breaker, SETTINGS, now, 0.0)
    return breaker, starts


def test_what_starts_well_and_breaks_at_once_is_tried_later_and_later() -> None:
    breaker, starts = broke_at_once(7)
    assert [round(later - earlier, 1) for earlier, later in pairwise(starts)] == [
        0.1, 0.1, 1.1, 2.1, 4.1, 5.1,
    ]  # fmt: skip
    assert (breaker.failures, breaker.early_ends, breaker.in_a_row) == (0, 7, 7)


def test_a_failed_start_in_between_does_not_break_the_row() -> None:
    breaker, _ = broke_at_once(2)
    assert not may_try(after_failure(breaker, SETTINGS, 0.2, 0.0), 0.3)


def test_the_proof_of_one_forgets_all_early_ends() -> None:
    breaker, _ = broke_at_once(5)
    assert after_success(after_start(with_trial(breaker), 20.0)) == Breaker()


def test_a_time_that_went_well_is_a_proof_too() -> None:
    breaker, _ = broke_at_once(2)
    well = after_start(breaker, 10.0)
    soon = after_early_end(well, SETTINGS, 10.0 + SETTINGS.backoff_max - 0.1, 0.0)
    late = after_early_end(after_start(well, 14.0), SETTINGS, 10.0 + SETTINGS.backoff_max, 0.0)
    assert (soon.early_ends, late.early_ends) == (3, 1)
    assert may_try(late, 15.0)
