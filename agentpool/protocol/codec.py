"""Ids and JSON."""

import re
from binascii import b2a_base64
from os import urandom
from typing import Any

import msgspec

from agentpool.errors import InvalidInput

__all__ = ["check_name", "decode_json", "encode_json", "new_id", "new_ids", "valid_name"]

ID_LENGTH = 22
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_encoder = msgspec.json.Encoder()

encode_json = _encoder.encode
decode_json = msgspec.json.decode


def new_id() -> str:
    """Return 22 random letters and digits, which hold more than 128 bits."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """Return so many new ids, from one draw.

    Base64 without its two other characters: each letter and digit is as likely as any.
    """
    text = ""
    while len(text) < count * ID_LENGTH:
        text += b2a_base64(urandom(18 * count + 6), newline=False).translate(None, b"+/").decode()
    return [text[start : start + ID_LENGTH] for start in range(0, count * ID_LENGTH, ID_LENGTH)]


def valid_name(name: Any) -> bool:
    """Tell whether `name` may name a pool, tenant, project or agent."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(kind: str, name: Any) -> str:
    """Return `name`, or raise `InvalidInput` that says what a name may be."""
    if not valid_name(name):
        raise InvalidInput(
            f"{name!r} is no valid {kind} name: 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit.",
            path=f"$.{kind}",
        )
    return str(name)
