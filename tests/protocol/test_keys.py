"""Keys as operators type them, and their prefixes."""

import inspect

import pytest

from agentpool.protocol.events import EventName
from agentpool.protocol.keys import Keys, pool_of, split_id


def test_keys_of_the_contract() -> None:
    keys = Keys()
    assert keys.pools() == "pools"
    assert keys.agent("p/a1") == "agent:p/a1"
    assert keys.process("w1") == "process:w1"
    assert keys.processes("developer_pool") == "pool:developer_pool:processes"
    assert keys.worker_channel("w1") == "worker:w1:commands"
    assert keys.pool_channel("p") == "pool:p:commands"
    assert keys.leader_lock("p") == "lock:pool:p:leader"


@pytest.mark.parametrize(
    ("keys", "prefix", "channels"),
    [(Keys(), "", ""), (Keys("x"), "x:", "x:"), (Keys("", 3), "", "db3:"), (Keys("x", 3), "x:", "x:db3:")],
)
def test_everything_carries_its_prefix(keys: Keys, prefix: str, channels: str) -> None:
    for name, method in inspect.getmembers(Keys, inspect.isfunction):
        if name.startswith("_"):
            continue
        words = ["w"] * (len(inspect.signature(method).parameters) - 1)
        expected = (channels if name.endswith("_channel") else prefix) + method(Keys(), *words)
        assert method(keys, *words) == expected


def test_no_two_keys_are_the_same() -> None:
    keys = Keys()
    spelled = []
    for name, method in inspect.getmembers(Keys, inspect.isfunction):
        if not name.startswith("_"):
            spelled.append(method(keys, *"abc"[: len(inspect.signature(method).parameters) - 1]))
    assert len(set(spelled)) == len(spelled)


def test_an_id_tells_where_its_keys_are() -> None:
    assert split_id("p/a1") == ("p", "a1")
    assert split_id("a1") == ("", "a1")
    assert split_id("p/") == ("p", "")
    assert pool_of("p/a1") == "p"
    assert pool_of("") == ""


def test_events_are_named_what_and_past_participle() -> None:
    for name in EventName:
        what, dot, done = name.partition(".")
        assert dot
        assert what
        assert done
        assert name.name == name.upper().replace(".", "_")
