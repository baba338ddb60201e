"""Ids and JSON."""

import re
import secrets
import string
from typing import Any

import msgspec

from agentpool.errors import InvalidInput

__all__ = ["check_name", "decode_json", "encode_json", "new_id", "valid_name"]

_ALPHABET = string.digits + string.ascii_letters
_PAIRS = [first + second for second in _ALPHABET for first in _ALPHABET]
"""By number, the low digit first."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_encoder = msgspec.json.Encoder()

encode_json = _encoder.encode
decode_json = msgspec.json.decode


def new_id() -> str:
    """Return 22 letters and digits that hold 128 random bits."""
    number, pairs = secrets.randbits(128), []
    for _ in range(11):
        number, pair = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[pair])
    return "".join(pairs)


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
