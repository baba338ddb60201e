"""When an agent is due, and how many are replaced together."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpool.policy.recycling import Quota, jitter_part, jittered, next_to_recycle, reason_to_recycle

QUOTA = Quota(requests=100, age=60.0, memory_mb=50.0, cpu_percent=90.0)


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        ((0, 0.0), None),
        ((99, 59.9, 50, 90), None),
        ((100, 0.0), "100 requests"),
        ((0, 60), "60 s old"),
        ((0, 0.0, 51), "51 MB over its baseline"),
        ((0, 0.0, None, 91), "91 % of a core"),
    ],
)
def test_each_limit(usage: tuple[Any, ...], reason: str | None) -> None:
    assert reason_to_recycle(QUOTA, *usage) == reason
    assert reason_to_recycle(Quota(), *usage) is None


@given(st.floats(0, 0.25), st.integers(1, 10_000))
def test_jitter_only_lowers_and_never_to_nothing(part: float, requests: int) -> None:
    made = jittered(Quota(requests=requests, age=60.0, memory_mb=60.0, cpu_percent=60.0), part)
    assert made.requests is not None
    assert max(1, int(requests * 0.75)) <= made.requests <= requests
    assert made.age is not None
    assert 45.0 <= made.age <= 60.0
    assert made.memory_mb == made.cpu_percent == made.age


def test_jitter_takes_off_10_percent_at_least_or_nothing() -> None:
    assert (jitter_part(0.25, 0.0), jitter_part(0.25, 1.0), jitter_part(0.10, 0.7)) == (0.10, 0.25, 0.10)
    assert jitter_part(0.0, 0.5) == 0.0


def test_no_limit_stays_none() -> None:
    assert jittered(Quota(), 0.2) == Quota()


@given(st.lists(st.text(), max_size=10), st.integers(0, 5), st.integers(1, 5))
def test_the_budget_is_kept(due: list[str], under_way: int, at_once: int) -> None:
    chosen = next_to_recycle(due, under_way, at_once)
    assert chosen == due[: len(chosen)]
    assert under_way + len(chosen) <= max(under_way, at_once)
