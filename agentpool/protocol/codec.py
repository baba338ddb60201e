"""Ids and JSON."""

import re
from binascii import b2a_base64
from os import urandom
from typing import Any

import msgspec

from agentpool.errors import InvalidInput

__all__ = ["check_name", "decode_json", "encode_json", "new_id", "valid_name"]

ID_LENGTH = 22
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_encoder = msgspec.json.Encoder()

encode_json = _encoder.encode
decode_json = msgspec.json.decode


def new_id() -> str:
    """Return 22 random letters and digits, which hold more than 128 bits.

    Base64 without its two other characters: each letter and digit is as likely as any.
    """
    while True:
        text = b2a_base64(urandom(24), newline=False).translate(None, b"+/")
        if len(text) >= ID_LENGTH:
            return text[:ID_LENGTH].decode()


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
