"""The operator's command `agentpool`, called in this process."""

import io
import json
import sys
from collections.abc import Callable, Coroutine
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import msgspec

from agentpool.cli.operator import main

__all__ = ["Cli", "Ran", "run_main"]


class Ran(msgspec.Struct):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its one JSON document."""
        assert self.status == 0, self.err
        return json.loads(self.out)


Cli = Callable[..., Coroutine[Any, Any, Ran]]


def run_main(words: tuple[str, ...], stdin: bytes) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    status: Any = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(words)
    except SystemExit as exit:
        status = exit.code
    finally:
        sys.stdin = before
    return Ran(status or 0, out.getvalue(), err.getvalue())
