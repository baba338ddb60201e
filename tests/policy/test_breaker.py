"""The breaker: closed, open, one trial."""

from agentpool.policy.breaker import (
    Breaker,
    BreakerSettings,
    after_failure,
    after_success,
    may_try,
    retry_in,
    with_trial,
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


def test_one_success_closes_it() -> None:
    assert after_success(opened(3)) == Breaker()
    assert with_trial(Breaker()) == Breaker()
    assert retry_in(Breaker(), 5.0) == 0.0
