"""Where workers are started: compared as lists of masters."""

from collections import Counter

from agentpool.policy.spreading import is_full, open_hosts, spread
from agentpool.protocol.records import HostRecord, HostsView

NOW = 1_000_000


def host(master: str, **more: object) -> HostRecord:
    values = {"cpus": 4.0, "memory_mb": 16_000, "available_mb": 8000, "last_beat": NOW, **more}
    return HostRecord(master=master, pool_name="p", **values)


def test_workers_are_spread_by_cpus() -> None:
    chosen = spread([host("big", cpus=6.0), host("small", cpus=2.0)], 8, {})
    assert Counter(chosen) == {"big": 6, "small": 2}


def test_what_runs_there_already_and_what_was_just_ordered_counts() -> None:
    assert Counter(spread([host("a", workers=3), host("b")], 3, {})) == {"b": 3}
    assert Counter(spread([host("a"), host("b")], 3, {"a": 3})) == {"b": 3}


def test_memory_counts_where_it_is_scarce() -> None:
    assert spread([host("a", available_mb=300), host("b", cpus=2.0)], 1, {}) == ["b"]
    assert spread([host("a", available_mb=3000), host("b", cpus=2.0)], 1, {}) == ["a"]


def test_bounds_of_a_host_are_kept() -> None:
    bounded = host("a", workers_max=2)
    assert Counter(spread([bounded, host("b", cpus=1.0)], 6, {})) == {"a": 2, "b": 4}
    assert spread([bounded], 6, {"a": 1}) == ["a"]
    assert is_full(host("a", available_mb=99, min_free_mb=100))
    assert not is_full(host("a", available_mb=100, min_free_mb=100))
    assert spread([host("a", available_mb=99, min_free_mb=100)], 1, {}) == []


def test_silent_hosts_those_that_start_none_and_those_without_a_label_are_left_out() -> None:
    hosts = (host("a", last_beat=NOW - 3000), host("b", closed="given up"), host("c", labels="gpu ssd"), host("d"))
    view = HostsView(now_ms=NOW, hosts=hosts)
    assert [host.master for host in open_hosts(view, 3000)] == ["c", "d"]
    assert [host.master for host in open_hosts(view, 3000, ["gpu"])] == ["c"]
    assert open_hosts(view, 3000, ["gpu", "tpu"]) == []
