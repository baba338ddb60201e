"""Ids and names."""

import string
import subprocess
import sys
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpool.errors import InvalidInput
from agentpool.protocol import codec
from agentpool.protocol.codec import check_name, decode_json, encode_json, new_id, valid_name

LETTERS = string.ascii_letters + string.digits


def test_ids_are_22_letters_and_digits_and_never_repeat() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert all(len(id) == 22 and set(id) <= set(LETTERS) for id in ids)
    assert set("".join(ids)) == set(LETTERS)
    assert all(valid_name(id) for id in ids)


def test_ids_never_fall_short_of_their_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 32 characters, those that are no letters and digits are left out: here all of them, then 11, then none.
    draws = iter([b"\xff" * 24, b"\xff" * 9 + b"\0" * 15, bytes(range(24))])
    monkeypatch.setattr(codec, "urandom", lambda size: next(draws))
    monkeypatch.setattr(codec, "_spare_ids", [])
    assert new_id() == b64encode(bytes(range(24))).decode().replace("+", "").replace("/", "")[:22]
    assert next(draws, None) is None


def test_a_forked_process_has_other_ids() -> None:
    code = (
        "import os; from agentpool.protocol.codec import new_id; new_id()\n"
        "child = os.fork()\nif child: os.waitpid(child, 0)\nprint(new_id(), flush=True)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert len(set(ran.stdout.split())) == 2


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True))
def test_names_of_the_contract_are_valid(name: str) -> None:
    assert valid_name(name)
    assert check_name("pool", name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "_a", "a" * 65, "a b", "a\n", "a/b", "a:b", "ä", "a*", "{a}", None, 1, b"a", ["a"]]
)
def test_other_names_are_refused_with_what_a_name_may_be(name: object) -> None:
    assert not valid_name(name)
    with pytest.raises(InvalidInput, match="1 to 64 letters") as caught:
        check_name("tenant", name)
    assert caught.value.path == "$.tenant"


@given(st.text())
def test_a_valid_name_is_one_word_of_plain_letters(name: str) -> None:
    if valid_name(name):
        assert name.isascii()
        assert name.split() == [name]
        assert not set(name) & set("/:{}*?[]")


def test_json_keeps_what_cjson_would_spoil() -> None:
    value = {"list": [], "big": 2**63 - 1, "small": -(2**63), "text": "ü😀"}
    assert decode_json(encode_json(value)) == value
