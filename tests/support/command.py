"""The operator's command `agentpool`, called in this process or started as one of its own."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import msgspec

from agentpool.cli.operator import main

__all__ = ["PROGRAM", "Cli", "Ran", "refused", "run_main", "start"]

PROGRAM = [
    sys.executable,
    "-c",
    # A run of the tests in a shell's background has Ctrl-C ignored, and would hand that down.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from agentpool.cli.operator import main; main()",
]


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


def refused(ran: Ran) -> str:
    """The one clear line of a refusal."""
    assert ran.status == 1, ran
    assert ran.out == ""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("agentpool: ")
    return ran.err


def start(redis_url: str, *words: str) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    command = [*PROGRAM, *words, "--redis-url", redis_url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
