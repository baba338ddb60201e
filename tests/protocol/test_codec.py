"""Ids and names."""

import string

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


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1))
def test_ids_keep_all_128_bits(first: int, second: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec.secrets, "randbits", lambda bits: first if bits == 128 else None)
        id = new_id()
        patch.setattr(codec.secrets, "randbits", lambda bits: second)
        other = new_id()
    assert sum(codec._ALPHABET.index(digit) * 62**place for place, digit in enumerate(id)) == first
    assert (id == other) == (first == second)


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
