"""Replacing outdated workers: one step at a time, a new one before an old one goes."""

from agentpool.policy.actions import DrainWorker, SetRenewing, StartWorkers
from agentpool.policy.renewal import is_outdated, plan_renewal
from agentpool.protocol.records import HostRecord, HostsView, PoolInfo, PoolView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

NOW = 1_000_000


def host(master: str = "m", **more: object) -> HostRecord:
    values = {"release": "2", "types_hash": "t", "last_beat": NOW, **more}
    return HostRecord(master=master, pool_name="p", **values)


def worker(name: str, release: str = "2", *, master: str = "m", types_hash: str = "t", ordered_at: int = 5):
    fields = {"release": release, "master": master, "types_hash": types_hash, "ordered_at": ordered_at}
    return WorkerRecord(process_id=name, pool_name="p", status=WorkerStatus.READY, **fields)


def plan(workers: list[WorkerRecord], *hosts: HostRecord, desired: int = 2, renewing: str = "1", **seen: int):
    view = PoolView(**{**dict.fromkeys(PoolView.__struct_fields__, 0), **seen})
    info = PoolInfo(pool_name="p", desired=desired, renewing=renewing)
    return plan_renewal(info, view, workers, HostsView(now_ms=NOW, hosts=hosts or (host(),)), 3000)


def test_a_worker_is_outdated_when_its_own_host_would_start_it_otherwise() -> None:
    assert not is_outdated(worker("a"), host())
    assert is_outdated(worker("a", "1"), host())
    assert is_outdated(worker("a", types_hash="old"), host())
    assert is_outdated(worker("a", ordered_at=5), host(renew_before=6))
    assert not is_outdated(worker("a", "1"), None), "nobody knows what it should be"


def test_hosts_of_two_releases_leave_each_others_workers_alone() -> None:
    workers = [worker("a", "1", master="old"), worker("b", "2", master="new")]
    assert plan(workers, host("old", release="1"), host("new"), renewing="") is None


def test_a_new_worker_is_started_before_an_old_one_drains() -> None:
    old = [worker("a", "1"), worker("b", "1")]
    assert plan(old, renewing="") == [SetRenewing(True), StartWorkers(1, "m")]
    assert plan(old, starting=1) == [], "it is awaited"
    assert plan([*old, worker("c")]) == [DrainWorker("a", "a new one takes its place")]
    assert plan([old[1], worker("c")], draining=1) == [], "one at a time"
    assert plan([old[1], worker("c")]) == [StartWorkers(1, "m")]
    assert plan([worker("c"), worker("d"), worker("e")]) == [SetRenewing(False)]
    assert plan([worker("c"), worker("d")], renewing="") is None


def test_where_every_host_is_full_an_old_one_goes_first() -> None:
    old = [worker("a", "1"), worker("b", "1")]
    assert plan(old, host(workers=2, workers_max=2)) == [DrainWorker("a", "a new one takes its place")]
    assert plan(old, host(workers=2, workers_max=2), host("other")) == [StartWorkers(1, "m")]


def test_nothing_goes_while_new_ones_do_not_start() -> None:
    assert plan([worker("a", "1")], host(closed="3 workers in a row failed to start")) == []
