"""Ids and JSON."""

import re
from binascii import b2a_base64
from os import register_at_fork, urandom
from typing import Any

import msgspec

from agentpool.errors import InvalidInput

__all__ = ["check_name", "decode_json", "encode_json", "new_id", "valid_name"]

ID_LENGTH = 22
BYTES_PER_DRAW = 1200
"""For about 70 ids: one draw costs as much as many ids."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_encoder = msgspec.json.Encoder()

encode_json = _encoder.encode
decode_json = msgspec.json.decode

_spare_ids: list[str] = []
register_at_fork(after_in_child=_spare_ids.clear)  # its parent will use them


def new_id() -> str:
    """Return 22 random letters and digits, which hold more than 128 bits.

    Base64 without its two other characters: each letter and digit is as likely as any.
    """
    while True:
        try:
            return _spare_ids.pop()
        except IndexError:
            text = b2a_base64(urandom(BYTES_PER_DRAW), newline=False).translate(None, b"+/=").decode()
            _spare_ids.extend(re.findall(f".{{{ID_LENGTH}}}", text))


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
