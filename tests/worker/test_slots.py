"""How many tasks a worker takes ahead of its slots."""

from types import SimpleNamespace
from typing import Any

import pytest

from agentpool_worker.slots import Slots


def new_slots(capacity: int) -> Slots:
    """Slots of a host on which nothing ever happens."""
    agents = SimpleNamespace(count=0)
    host: Any = SimpleNamespace(agents=agents, begin=lambda run: None, release=lambda run: None)
    place: Any = SimpleNamespace(settings=SimpleNamespace(capacity=capacity), waits=0)
    return Slots(place, host)


@pytest.mark.parametrize(("run_ms", "ahead"), [(0.0, 190), (0.05, 190), (0.15, 133), (1.0, 90), (4.9, 90), (5.0, 0)])
def test_the_shorter_tasks_are_the_more_are_taken_ahead(run_ms: float, ahead: int) -> None:
    slots = new_slots(10)
    run: Any = SimpleNamespace(key=("A", "acme"), has_begun=True, own_ms=run_ms, duration_ms=run_ms)
    slots.start(run)
    slots.free(run)
    assert slots.room() == (10, ahead)


def test_nothing_is_taken_ahead_of_what_is_not_known() -> None:
    assert new_slots(3).room() == (3, 0)
