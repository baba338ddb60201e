"""What is said of a server: judged from facts, and asked of real ones in good and bad shape."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from support.wait import wait_until_sync

from agentpool.redis_server import find_binary
from agentpool.server_check import DURABILITY, Findings, check_server, judge

TIMEOUT_S = 5.0
GOOD: dict[str, object] = {
    "product": "valkey",
    "version": "9.1.2",
    "role": "master",
    "cluster": False,
    "maxmemory_bytes": 0,
    "maxmemory_policy": "noeviction",
    "appendonly": True,
    "appendfsync": "everysec",
    "fsync_pauses": False,
    "save": "",
    "durability": DURABILITY["everysec"],
}
Configure = Callable[..., None]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as connected:
        yield connected


@pytest.fixture
def configure(client: redis.Redis) -> Iterator[Configure]:
    """CONFIG SET for one test, undone after it."""
    before: dict[str, str] = {}

    def set_all(**values: str) -> None:
        for name, value in values.items():
            option = name.replace("_", "-")
            before.setdefault(option, client.config_get(option)[option])
            client.config_set(option, value)

    yield set_all
    for option, value in before.items():
        client.config_set(option, value)


def as_user(url: str, login: str) -> str:
    """The same socket, as another user."""
    return f"unix://{login}@{urlsplit(url).path}"


# -- judged from facts ----------------------------------------------------------------------------------------------


def test_a_good_server_has_no_finding() -> None:
    assert judge(GOOD) == Findings(facts=GOOD)


def test_nothing_known_is_nothing_found() -> None:
    assert judge({}) == Findings()


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"version": "6.2.14", "product": "redis"}, "The server is redis 6.2.14"),
        ({"role": "replica"}, "The server is a replica"),
        ({"role": "sentinel"}, "This is a Sentinel"),
        ({"cluster": True}, "cluster mode, which is not supported yet"),
        ({"maxmemory_bytes": 1, "maxmemory_policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru"),
        ({"maxmemory_bytes": 1, "maxmemory_policy": "allkeys-random"}, "maxmemory-policy is allkeys-random"),
    ],
)
def test_errors(facts: dict[str, object], line: str) -> None:
    findings = judge(GOOD | facts)
    assert len(findings.errors) == 1
    assert line in findings.errors[0]
    assert findings.warnings == []


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"maxmemory_bytes": 1, "maxmemory_policy": "volatile-ttl"}, "maxmemory-policy is volatile-ttl"),
        ({"appendonly": False, "save": ""}, "without saving, everything is lost"),
        ({"appendonly": False, "save": "3600 1"}, "everything since the last snapshot is lost"),
        ({"appendfsync": "no"}, "appendfsync is no"),
        ({"fsync_pauses": True}, "appendfsync everysec does not hold"),
    ],
)
def test_warnings(facts: dict[str, object], line: str) -> None:
    findings = judge(GOOD | facts)
    assert findings.errors == []
    assert len(findings.warnings) == 1
    assert line in findings.warnings[0]


@pytest.mark.parametrize(
    "facts",
    [
        {"version": "7.0.0"},
        {"version": "10.0"},
        {"version": "8"},
        {"maxmemory_bytes": 0, "maxmemory_policy": "allkeys-lru"},
        {"maxmemory_bytes": 1, "maxmemory_policy": "noeviction"},
        {"appendfsync": "always"},
    ],
)
def test_fit_servers(facts: dict[str, object]) -> None:
    said = GOOD | facts | {"durability": DURABILITY[str(facts.get("appendfsync", "everysec"))]}
    assert judge(GOOD | facts) == Findings(facts=said)


@pytest.mark.parametrize(
    ("facts", "mode"),
    [
        ({"appendonly": True, "appendfsync": "always"}, "always"),
        ({"appendonly": True, "appendfsync": "no"}, "no"),
        ({"appendonly": False, "appendfsync": "always", "save": "3600 1"}, "snapshots"),
        ({"appendonly": False, "appendfsync": "always", "save": ""}, "none"),
    ],
)
def test_what_writes_survive_is_said(facts: dict[str, object], mode: str) -> None:
    assert judge(facts).facts["durability"] == DURABILITY[mode]
    assert "durability" not in judge({"appendonly": True}).facts, "the server does not say how it syncs"


# -- asked of a real server -----------------------------------------------------------------------------------------


def test_a_real_server_is_fit(redis_url: str, configure: Configure, client: redis.Redis) -> None:
    configure(appendonly="yes", appendfsync="everysec", maxmemory="0")
    findings = check_server(redis_url, TIMEOUT_S)
    assert (findings.errors, findings.warnings) == ([], [])
    assert findings.facts.keys() == GOOD.keys()
    assert findings.facts["role"] == "master"
    assert client.dbsize() == 0, "a check leaves nothing behind"


@pytest.mark.parametrize(("policy", "kind"), [("allkeys-lfu", "errors"), ("volatile-lru", "warnings")])
def test_an_evicting_policy_is_seen(redis_url: str, configure: Configure, policy: str, kind: str) -> None:
    configure(maxmemory="1gb", maxmemory_policy=policy, appendfsync="everysec")
    findings = check_server(redis_url, TIMEOUT_S)
    assert [line for line in getattr(findings, kind) if f"maxmemory-policy is {policy}" in line]
    assert len(findings.errors + findings.warnings) == 1


def test_a_full_server_is_seen(redis_url: str, configure: Configure) -> None:
    configure(maxmemory="1", maxmemory_policy="noeviction", appendfsync="everysec")
    findings = check_server(redis_url, TIMEOUT_S)
    assert findings.errors == [], "a master must start, so that what is there can drain"
    assert "out of memory" in findings.warnings[0]


def test_missing_replicas_are_seen(redis_url: str, configure: Configure) -> None:
    configure(min_replicas_to_write="3")
    (error,) = check_server(redis_url, TIMEOUT_S).errors
    assert error.startswith("The server refuses writes: ")


def test_an_append_only_file_that_is_off_is_seen(redis_url: str, configure: Configure) -> None:
    configure(appendonly="no")
    findings = check_server(redis_url, TIMEOUT_S)
    assert findings.facts["appendonly"] is False
    assert any(line.startswith("appendonly is off") for line in findings.warnings)


def test_a_key_of_another_type_is_no_failed_write(redis_url: str, client: redis.Redis) -> None:
    client.sadd("install", "x")
    assert check_server(redis_url, TIMEOUT_S).errors == []


def test_a_replica_is_seen(redis_url: str, client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", 1)
    try:
        assert [line for line in check_server(redis_url, TIMEOUT_S).errors if "is a replica" in line]
    finally:
        client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("rules", "subjects"),
    [
        (["+@all", "-config"], ["Could not read CONFIG"]),
        (["+@all", "-info"], ["Could not read INFO"]),
        (["+@all", "-config", "-info", "-ping"], ["Could not read INFO", "Could not read CONFIG"]),
        (["+@all", "-setrange"], ["Could not try a write"]),
    ],
)
def test_what_an_acl_hides_is_a_warning(
    redis_url: str, client: redis.Redis, configure: Configure, rules: list[str], subjects: list[str]
) -> None:
    configure(appendfsync="everysec")
    client.execute_command("ACL", "SETUSER", "narrow", "on", ">hush-hush", "~*", "&*", *rules)
    try:
        findings = check_server(as_user(redis_url, "narrow:hush-hush"), TIMEOUT_S)
    finally:
        client.execute_command("ACL", "DELUSER", "narrow")
    assert findings.errors == []
    assert len(findings.warnings) == len(subjects)
    assert all(line.startswith(subject) for line, subject in zip(findings.warnings, subjects, strict=True))


@pytest.mark.parametrize(
    ("namespace", "rules", "refused"),
    [
        ("", ["~*", "+@all", "-@write"], "install"),
        ("", ["~other:*", "+@all"], "install"),
        ("mine", ["~other:*", "+@all"], "mine:install"),
        ("mine", ["~mine:*", "+@all"], ""),
    ],
)
def test_a_refused_write_on_our_own_key_is_an_error(
    redis_url: str, client: redis.Redis, namespace: str, rules: list[str], refused: str
) -> None:
    client.execute_command("ACL", "SETUSER", "narrow", "on", ">hush-hush", "&*", *rules)
    try:
        findings = check_server(as_user(redis_url, "narrow:hush-hush"), TIMEOUT_S, namespace=namespace)
    finally:
        client.execute_command("ACL", "DELUSER", "narrow")
    assert [f"SETRANGE on {refused}." in line for line in findings.errors] == ([True] if refused else [])


def test_a_wrong_password_is_an_error_that_hides_it(redis_url: str) -> None:
    findings = check_server(as_user(redis_url, "nobody:hush-hush"), TIMEOUT_S)
    (error,) = findings.errors
    assert "refused the login" in error
    assert "hush-hush" not in error
    assert findings.warnings == []


def test_a_missing_login_is_an_error(redis_url: str, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "default", "resetpass", ">hush-hush")
    try:
        (error,) = check_server(redis_url, TIMEOUT_S).errors
    finally:
        with redis.Redis.from_url(as_user(redis_url, "default:hush-hush")) as admin:
            admin.execute_command("ACL", "SETUSER", "default", "nopass")
    assert "refused the login" in error


# -- no server, or no fit one ---------------------------------------------------------------------------------------


def test_no_socket_is_an_error(tmp_path: Path) -> None:
    (error,) = check_server(f"unix://u:hush-hush@{tmp_path}/none.sock", TIMEOUT_S).errors
    assert f"{tmp_path}/none.sock" in error
    assert "Is it running" in error
    assert "hush-hush" not in error


@pytest.mark.parametrize("url", ["http://h", "redis://u:hush-hush@h:port", "unix://relative/path", ""])
def test_no_url_is_an_error(url: str) -> None:
    (error,) = check_server(url, TIMEOUT_S).errors
    assert error.startswith("Redis URL: ")
    assert "hush-hush" not in error


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_silent_server_is_an_error(listener: socket.socket) -> None:
    (error,) = check_server(f"redis://127.0.0.1:{listener.getsockname()[1]}", 0.1).errors
    assert "did not answer within 0.1 s" in error


def test_another_kind_of_server_is_an_error(listener: socket.socket) -> None:
    def answer() -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(1000)
            accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    findings = check_server(f"redis://127.0.0.1:{listener.getsockname()[1]}", TIMEOUT_S)
    thread.join()
    assert len(findings.errors) == 1
    assert "\n" not in findings.errors[0]


def test_cluster_mode_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        # A cluster node must have TCP, and its second port is above 65535 by default when the first is high.
        port, cluster_port = one.getsockname()[1], other.getsockname()[1]
    path = tmp_path / "s"
    options = f"--port {port} --bind 127.0.0.1 --cluster-port {cluster_port} --cluster-enabled yes --unixsocket {path}"
    process = subprocess.Popen(
        [find_binary("auto").path, *options.split(), "--dir", tmp_path], stdout=subprocess.DEVNULL
    )
    try:
        wait_until_sync(path.exists, message="the cluster node did not start")
        findings = check_server(f"unix://{path}", TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert findings.facts["cluster"] is True
    assert [line for line in findings.errors if "cluster mode" in line]
