"""What settings must obey, rule by rule."""

from typing import Any

import msgspec
import pytest

from agentpool.config import Finding, PoolSettings, RedisSettings, Settings, check, url_problem
from agentpool.config.checking import COUNTS_MIN, FACTORS, MAY_BE_ZERO, QUOTAS, SIZES, THRESHOLDS, TIMES
from agentpool.config.settings import TenantOverrides

AGENTS = ("myapp.agents:Reviewer",)


def findings_of_pool(name: str = "p", **values: Any) -> list[Finding]:
    return check(Settings(pools={name: PoolSettings(**({"agents": AGENTS} | values))}))


def keys_of(findings: list[Finding]) -> list[str]:
    return [finding.path[-1] for finding in findings]


def test_defaults_have_no_fault() -> None:
    assert findings_of_pool() == []


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "x" * 64])
def test_good_pool_names(name: str) -> None:
    assert findings_of_pool(name) == []


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a:b", "a/b", "é", "a\n", "x" * 65])
def test_wrong_pool_names(name: str) -> None:
    (finding,) = findings_of_pool(name)
    assert finding.path == ("pools", name)
    assert "a pool's name must be" in finding.message


def test_every_number_of_a_pool_has_a_rule() -> None:
    types = {field.name: field.type for field in msgspec.structs.fields(PoolSettings)}
    assert {name for name, kind in types.items() if kind is int} == set(COUNTS_MIN)
    floats = {name for name, kind in types.items() if kind is float}
    assert floats == {*TIMES, *THRESHOLDS, *QUOTAS, *FACTORS, *SIZES}
    assert set(TIMES) >= MAY_BE_ZERO


@pytest.mark.parametrize("name", COUNTS_MIN)
def test_counts_have_a_least_value(name: str) -> None:
    assert keys_of(findings_of_pool(**{name: COUNTS_MIN[name] - 1})) == [name]
    assert name in keys_of(findings_of_pool(**{name: 10**16}))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e10])
def test_times_are_finite_and_not_negative(name: str, seconds: float) -> None:
    assert keys_of(findings_of_pool(**{name: seconds})) == [name]


@pytest.mark.parametrize("name", TIMES)
def test_some_times_may_be_zero(name: str) -> None:
    assert keys_of(findings_of_pool(**{name: 0.0})) == ([] if name in MAY_BE_ZERO else [name])


@pytest.mark.parametrize("factor", [0.99, -1.0, float("nan"), float("inf")])
def test_factors_are_one_or_more(factor: float) -> None:
    assert keys_of(findings_of_pool(retry_backoff=factor)) == ["retry_backoff"]


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_are_above_zero(size: float) -> None:
    assert keys_of(findings_of_pool(audit_file_mb=size)) == ["audit_file_mb"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"weight": 0.0}, "weight"),
        ({"weight": 1001.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        *(({name: -1}, name) for name in TenantOverrides.__struct_fields__),
    ],
)
def test_limits_of_one_tenant(values: dict[str, Any], key: str) -> None:
    (finding,) = findings_of_pool(tenants={"acme": TenantOverrides(**values)})
    assert finding.path == ("pools", "p", "tenants", "acme", key)


def test_good_limits_of_one_tenant() -> None:
    zeros = {name: 0 for name in TenantOverrides.__struct_fields__ if name != "weight"}
    tenants = {"default": TenantOverrides(weight=0.001, **zeros), "b": TenantOverrides(weight=1000.0)}
    assert findings_of_pool(tenants=tenants) == []


def test_wrong_tenant_names() -> None:
    (finding,) = findings_of_pool(tenants={"a b": TenantOverrides()})
    assert finding.path == ("pools", "p", "tenants", "a b")
    assert "a tenant's name must be" in finding.message


@pytest.mark.parametrize("name", ["scale_up_threshold", "scale_down_threshold"])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, 80.0, float("nan")])
def test_thresholds_are_shares(name: str, share: float) -> None:
    assert keys_of(findings_of_pool(**{name: share})) == [name]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"min_workers": 16}, "min_workers"),
        ({"min_workers": 3, "max_workers": 2}, "min_workers"),
        ({"scale_up_threshold": 0.5, "scale_down_threshold": 0.5}, "scale_down_threshold"),
        ({"scale_up_threshold": 0.1}, "scale_down_threshold"),
        ({"boot_backoff": 31.0}, "boot_backoff"),
        ({"retry_delay": 61.0}, "retry_delay"),
    ],
)
def test_values_that_contradict_each_other(values: dict[str, Any], key: str) -> None:
    (finding,) = findings_of_pool(**values)
    assert finding.path == ("pools", "p", key)
    assert not finding.is_warning


@pytest.mark.parametrize("values", [{"min_workers": 0}, {"min_workers": 15}, {"min_workers": 2, "max_workers": 2}])
def test_values_that_agree(values: dict[str, Any]) -> None:
    assert findings_of_pool(**values) == []


@pytest.mark.parametrize(
    ("interval", "timeout", "is_warning"),
    [(1.0, 3.0, None), (1.0, 10.0, None), (1.0, 2.9, True), (1.0, 2.0, True), (1.0, 1.9, False), (30.0, 10.0, False)],
)
def test_a_timeout_is_several_heartbeats(interval: float, timeout: float, is_warning: bool | None) -> None:
    findings = findings_of_pool(heartbeat_interval=interval, heartbeat_timeout=timeout)
    assert [finding.is_warning for finding in findings] == ([] if is_warning is None else [is_warning])
    assert all(f"set {3 * interval:g} s or more" in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((), "names no agent class"),
        (("Reviewer",), "write module:Class"),
        (("myapp.agents.Reviewer",), "write module:Class"),
        (("myapp:",), "write module:Class"),
        ((":Reviewer",), "write module:Class"),
        (("my-app:Reviewer",), "write module:Class"),
        (("a..b:Reviewer",), "write module:Class"),
        (("a:Outer.Inner",), "write module:Class"),
        (("a:B:C",), "write module:Class"),
        (("a b:C",), "write module:Class"),
        (("",), "write module:Class"),
        (("a:Reviewer", "b:Reviewer"), '"b:Reviewer" and "a:Reviewer" have one class name'),
        (("a:Reviewer", "a:Reviewer"), "have one class name"),
    ],
)
def test_wrong_agents(specs: tuple[str, ...], message: str) -> None:
    (finding,) = findings_of_pool(agents=specs)
    assert finding.path == ("pools", "p", "agents")
    assert message in finding.message


def test_two_pools_may_share_a_class() -> None:
    assert check(Settings(pools={name: PoolSettings(agents=AGENTS) for name in ("a", "b")})) == []


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"namespace": "a:b"}, "namespace"),
        ({"namespace": "{a}"}, "namespace"),
        ({"connect_timeout": 0.0}, "connect_timeout"),
        ({"command_timeout": -1.0}, "command_timeout"),
        ({"url": "http://h"}, "url"),
        ({"url": ""}, "url"),
    ],
)
def test_wrong_redis_settings(values: dict[str, Any], key: str) -> None:
    (finding,) = check(Settings(redis=RedisSettings(**values)))
    assert finding.path == ("redis", key)


@pytest.mark.parametrize(
    ("values", "key"),
    [({"host_id": "a b"}, "host_id"), ({"leader_lease": 0.0}, "leader_lease"), ({"labels": ("gpu", "a b")}, "labels")],
)
def test_wrong_top_settings(values: dict[str, Any], key: str) -> None:
    assert keys_of(check(Settings(**values))) == [key]


def test_settings_of_the_embedded_server_beside_a_url_are_a_warning() -> None:
    findings = check(Settings(redis=RedisSettings(url="redis://h", port=7000, binary="system")))
    assert [(finding.path[-1], finding.is_warning) for finding in findings] == [("binary", True), ("port", True)]


def test_a_payload_without_an_audit_is_a_warning() -> None:
    (finding,) = findings_of_pool(audit=False, audit_payload=True)
    assert (finding.path[-1], finding.is_warning) == ("audit_payload", True)


def test_one_mistake_makes_one_line() -> None:
    assert keys_of(findings_of_pool(max_workers=0)) == ["max_workers"]
    pool = PoolSettings(agents=AGENTS, min_workers=20)
    assert check(Settings(pools={"p": pool}), {("pools", "p", "max_workers")}) == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%40ss@h:6379/15",
        "rediss://[::1]:6380",
        "unix:///run/redis.sock?db=3",
        "unix://user:secret@/run/redis.sock",
        "redis://h/?db=2",
    ],
)
def test_good_urls(url: str) -> None:
    assert url_problem(url) is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with"),
        ("localhost:6379", "must begin with"),
        ("redis:/h", "must begin with"),
        ("tcp://h:1", "must begin with"),
        ("redis://h:port", "host or port cannot be read"),
        ("redis://h:70000", "host or port cannot be read"),
        ("redis://[::1", "host or port cannot be read"),
        ("redis://h:0", "port must be from 1"),
        ("redis://h/zero", "database must be a number"),
        ("redis://h/0?db=x", "database must be a number"),
        ("unix:///s?db=x", "database must be a number"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("redis://h /0", "contains a blank"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    assert message in (url_problem(url) or "")
