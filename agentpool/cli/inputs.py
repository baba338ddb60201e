"""The `--input` of a run: JSON, `@FILE`, or `-` for standard input."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from agentpool.errors import InvalidInput

__all__ = ["read_input"]


def read_input(text: str) -> Any:
    """Return the input as plain data; raises `InvalidInput` that tells where the fault is."""
    if text == "-":
        return _parse("standard input", _decoded("standard input", sys.stdin.buffer.read()))
    if text.startswith("@"):
        return _parse(text[1:], _decoded(text[1:], _read_file(text[1:])))
    return _parse("--input", text)


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from None


def _decoded(source: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}.") from None


def _parse(source: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        hint = " A string needs quotes: '\"text\"'." if source == "--input" else ""
        raise InvalidInput(
            f"{source} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.{hint}"
        ) from None
    except RecursionError:
        raise InvalidInput(f"{source} is nested too deeply.") from None


def _refuse_constant(word: str) -> NoReturn:
    raise InvalidInput(f"{word} is not valid JSON.")
