"""Whether and when a task is tried again."""

import pytest

from agentpool import RetryPolicy
from agentpool.policy.retries import next_retry

PLAIN = RetryPolicy(attempts=4, delay=1.0, backoff=2.0, max_delay=3.0, jitter=False)
RAISED = ("KeyError", "LookupError", "Exception", "BaseException", "object")


@pytest.mark.parametrize(("attempt", "wait"), [(1, 1.0), (2, 2.0), (3, 3.0), (4, None), (5, None)])
def test_waits_grow_up_to_a_bound_until_the_attempts_are_used_up(attempt: int, wait: float | None) -> None:
    assert next_retry(PLAIN, attempt, RAISED, 0.5) == wait


def test_jitter_takes_up_to_half_off() -> None:
    policy = RetryPolicy(delay=2.0)
    assert [next_retry(policy, 1, RAISED, chance) for chance in (0.0, 0.5, 1.0)] == [2.0, 1.5, 1.0]


def test_only_some_errors_are_worth_it() -> None:
    assert next_retry(RetryPolicy(on=(LookupError,), jitter=False), 1, RAISED, 0) == 1.0
    assert next_retry(RetryPolicy(on=("ValueError", OSError)), 1, RAISED, 0) is None


def test_very_many_attempts_are_no_very_large_number() -> None:
    for backoff in (2, 1e9):
        assert next_retry(RetryPolicy(attempts=10**9, backoff=backoff, jitter=False), 10**8, RAISED, 0) == 60.0
    assert next_retry(RetryPolicy(attempts=10**9, backoff=2, delay=0, jitter=False), 10**8, RAISED, 0) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempts", 0),
        ("attempts", True),
        ("attempts", 2.5),
        ("delay", -1),
        ("backoff", 0.5),
        ("max_delay", float("nan")),
    ],
)
def test_an_impossible_policy_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: value})
