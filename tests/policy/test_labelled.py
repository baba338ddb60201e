"""Growth for hosts with labels, compared as lists of actions."""

from policy.test_reconcile import NOW, info, limits, view

from agentpool.policy.actions import SetDesired, StartWorkers
from agentpool.policy.labelled import plan_labelled_growth
from agentpool.protocol.records import HostRecord, HostsView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

HOSTS = HostsView(
    now_ms=NOW,
    hosts=(HostRecord(master="plain", pool_name="p"), HostRecord(master="gpu", pool_name="p", labels="gpu ssd")),
)


def worker(name: str, master: str, *, free: int = 10, status: str = "ready", labels: str = "") -> WorkerRecord:
    values = {"status": WorkerStatus(status), "master": master, "labels": labels, "capacity": 10, "available": free}
    return WorkerRecord(process_id=name, pool_name="p", **values)


def plan(seen, demand: dict[str, int], *workers: WorkerRecord, **more):
    return plan_labelled_growth(limits(), info(**more), seen, demand, workers, HOSTS)


def test_workers_with_room_elsewhere_are_of_no_use() -> None:
    found = plan(view(1, due=11, free_slots=10), {"gpu": 11}, worker("a", "plain"))
    assert found == [SetDesired(3), StartWorkers(2, labels=("gpu",))]


def test_room_on_workers_with_the_labels_counts_also_when_they_are_on_their_way() -> None:
    ready, coming = worker("a", "gpu", labels="gpu ssd", free=4), worker("b", "gpu", status="ordered")
    assert plan(view(2, due=14, starting=1, free_slots=4), {"gpu+ssd": 14}, ready, coming, desired=2) == []
    found = plan(view(2, due=15, starting=1, free_slots=4), {"gpu+ssd": 15}, ready, coming, desired=2)
    assert found == [SetDesired(3), StartWorkers(1, labels=("gpu", "ssd"))]


def test_everything_else_is_planned_without_it() -> None:
    found = plan(view(1, due=15), {"gpu": 5}, worker("a", "plain", free=0))
    assert found == [SetDesired(2), StartWorkers(1), SetDesired(3), StartWorkers(1, labels=("gpu",))]


def test_the_bound_of_the_pool_holds_for_all_together() -> None:
    found = plan(view(4, due=100), {"gpu": 50}, worker("a", "plain", free=0), desired=4)
    assert found == [SetDesired(5), StartWorkers(1)]
    assert plan(view(1, due=5), {"gpu": 5}, worker("a", "plain"), restarts="given up") == []
