"""What a pool's leader decides, compared as lists of actions."""

import pytest

from agentpool.policy.actions import DrainWorker, SetDesired, StartWorkers
from agentpool.policy.reconcile import Limits, plan_growth, plan_shrinking, threshold, workers_needed
from agentpool.policy.scaling import Thresholds
from agentpool.protocol.records import PoolInfo, PoolView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

NOW = 1_000_000


def limits(**more: object) -> Limits:
    bounds = Thresholds(up=1.0, down=0.2, cooldown_ms=0)
    values = {"min_workers": 1, "max_workers": 5, "agents_per_worker": 10, "worker_idle_ms": 60_000}
    return Limits(**{"thresholds": bounds, **values, **more})


def info(desired: int = 1, floor: int = 1, **more: object) -> PoolInfo:
    return PoolInfo(pool_name="p", desired=desired, floor=floor, **more)


def view(workers: int = 1, **more: int) -> PoolView:
    zeros = dict.fromkeys(PoolView.__struct_fields__, 0)
    return PoolView(**{**zeros, "now_ms": NOW, "workers": workers, "ready": workers, **more})


def worker(name: str, *, used: int = 0, idle_for: int = 0, types_hash: str = "") -> WorkerRecord:
    return WorkerRecord(
        process_id=name,
        pool_name="p",
        status=WorkerStatus.READY,
        capacity=10,
        available=10 - used,
        idle_since=0 if used else NOW - idle_for,
        types_hash=types_hash,
    )


@pytest.mark.parametrize(
    ("seen", "needed"),
    [
        (view(due=0), 0),
        (view(due=1), 1),
        (view(due=10), 1),
        (view(due=11), 2),
        (view(due=25, free_slots=5), 2),
        (view(due=25, starting=2), 1),
        (view(due=10, starting=1), 0),
        (view(runnable_tasks=11), 2),
        (view(waiting_tasks=11), 0),
        (view(due=5, runnable_tasks=5, free_slots=10), 0),
    ],
)
def test_workers_needed_counts_backlog_beyond_room_and_what_is_ordered(seen: PoolView, needed: int) -> None:
    assert workers_needed(seen, 10) == needed


def test_a_pool_at_its_size_needs_nothing() -> None:
    assert plan_growth(limits(), info(), view()) == []


def test_the_minimum_is_started() -> None:
    assert plan_growth(limits(min_workers=2), info(desired=0), view(0)) == [SetDesired(2), StartWorkers(2)]


def test_a_lost_worker_is_replaced_though_nothing_waits() -> None:
    assert plan_growth(limits(), info(desired=3), view(2)) == [StartWorkers(1)]


def test_backlog_starts_as_many_as_it_needs_at_once() -> None:
    assert plan_growth(limits(), info(), view(1, due=25)) == [SetDesired(4), StartWorkers(3)]


def test_what_is_ordered_is_not_started_twice() -> None:
    assert plan_growth(limits(), info(desired=2), view(2, starting=1, due=10)) == []


def test_max_workers_bounds_growth() -> None:
    assert plan_growth(limits(), info(), view(1, due=1000)) == [SetDesired(5), StartWorkers(4)]


def test_a_draining_worker_no_longer_counts() -> None:
    assert plan_growth(limits(), info(desired=2), view(2, draining=1)) == [StartWorkers(1)]


def test_stopped_restarts_start_nothing_but_remember_the_wish() -> None:
    assert plan_growth(limits(), info(restarts="given up"), view(1, due=5)) == [SetDesired(2)]


def test_the_floor_is_kept() -> None:
    assert plan_growth(limits(), info(desired=1, floor=3), view(1)) == [SetDesired(3), StartWorkers(2)]


def test_workers_idle_for_long_leave_down_to_the_floor() -> None:
    workers = [worker("a", idle_for=70_000), worker("b", idle_for=80_000), worker("c", idle_for=1000)]
    actions = plan_shrinking(limits(min_workers=2), info(desired=3), view(3), workers)
    assert actions == [DrainWorker("b", "idle", only_idle=True)]


@pytest.mark.parametrize(("used", "leaves"), [(10, False), (8, False), (7, True), (0, True)])
def test_an_idle_worker_stays_that_utilization_would_ask_for_again(used: int, leaves: bool) -> None:
    busy = limits(thresholds=Thresholds(up=0.8, down=0.2, cooldown_ms=0))
    workers = [worker("a", used=used), worker("b", idle_for=70_000)]
    actions = plan_shrinking(busy, info(desired=2), view(2), workers)
    assert actions == ([DrainWorker("b", "idle", only_idle=True)] if leaves else [])


def test_idle_workers_above_the_wanted_size_leave_at_once_and_busy_ones_stay() -> None:
    workers = [worker("a", used=1), worker("b"), worker("c")]
    actions = plan_shrinking(limits(), info(desired=1), view(3), workers)
    assert actions == [DrainWorker("b", "above the wanted size"), DrainWorker("c", "above the wanted size")]


def test_nothing_leaves_while_something_waits() -> None:
    workers = [worker("a", idle_for=70_000), worker("b", idle_for=70_000)]
    assert plan_shrinking(limits(), info(desired=2), view(2, due=1), workers) == []


@pytest.mark.parametrize("busy", [{"draining": 1}, {"starting": 1}])
def test_one_change_at_a_time(busy: dict[str, int]) -> None:
    workers = [worker("a", idle_for=70_000), worker("b", idle_for=70_000)]
    assert plan_shrinking(limits(), info(desired=2), view(2, **busy), workers) == []


def test_a_step_down_takes_the_emptiest() -> None:
    workers = [worker("a", used=2), worker("b", used=1), worker("c", used=3)]
    actions = plan_shrinking(limits(), info(desired=3), view(3), workers, step=-1)
    assert actions == [SetDesired(2), DrainWorker("b", "utilization is low")]


def test_a_step_up_starts_one_more() -> None:
    assert plan_growth(limits(), info(desired=2), view(2), step=1) == [SetDesired(3), StartWorkers(1)]


@pytest.mark.parametrize(
    ("used", "since_ms", "step"),
    [
        ((9, 8), 60_000, 1),
        ((9, 8), 1000, 0),
        ((5, 5), 60_000, 0),
        ((1, 1), 60_000, -1),
        ((0, 0), 60_000, -1),
    ],
)
def test_thresholds_step_by_utilization_after_the_cooldown(used: tuple[int, int], since_ms: int, step: int) -> None:
    bounds = Thresholds(up=0.8, down=0.2, cooldown_ms=30_000)
    workers = [worker("a", used=used[0]), worker("b", used=used[1])]
    assert threshold(limits(thresholds=bounds), workers, 1, since_ms) == step


def test_thresholds_are_off_by_default() -> None:
    assert threshold(limits(), [worker("a", used=10)], 1, 10**9) == 0


def test_thresholds_respect_floor_and_maximum() -> None:
    bounds = Thresholds(up=0.8, down=0.2, cooldown_ms=0)
    full, empty = [worker("a", used=10)], [worker("a"), worker("b")]
    assert threshold(limits(thresholds=bounds, max_workers=1), full, 1, 1) == 0
    assert threshold(limits(thresholds=bounds), empty, 2, 1) == 0
