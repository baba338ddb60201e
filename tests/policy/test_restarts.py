"""When what failed is tried again."""

import pytest

from agentpool.policy.restarts import next_restart


def delay(failures: int, jitter: float = 0.0) -> float | None:
    return next_restart(failures, backoff=0.5, backoff_max=30.0, failures_max=10, jitter=jitter)


def test_the_delay_doubles_up_to_its_bound() -> None:
    assert [delay(failures) for failures in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize("failures", [10, 11, 1000])
def test_it_is_given_up_after_so_many_failures(failures: int) -> None:
    assert delay(failures) is None


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
def test_jitter_takes_up_to_half_away(jitter: float) -> None:
    found = delay(3, jitter)
    assert found is not None
    assert 1.0 <= found <= 2.0


def test_many_failures_do_not_overflow() -> None:
    assert next_restart(10**6, backoff=0.5, backoff_max=30.0, failures_max=10**7, jitter=0.0) == 30.0
