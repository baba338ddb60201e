"""How both programs end when something fails that nobody raised on purpose: one line, exit status 1."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from agentpool.cli import output

__all__ = ["guarded"]

INTERNAL = "INTERNAL"
NO_OUTPUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}
"""What a write to a full disk, a dead terminal or a closed pipe fails with."""


def guarded(program: str, run: Callable[[], object], *, as_json: bool) -> None:
    """Run it, and see that what it printed is written."""
    try:
        try:
            run()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 (the last resort: whatever it is, it is told in one line)
        _tell(program, error, as_json=as_json)
        sys.exit(1)


def _tell(program: str, error: Exception, *, as_json: bool) -> None:
    if not _is_about_output(error):
        output.print_error(program, _bug(error), as_json=as_json, code=INTERNAL)
        return
    _give_stdout_up()
    if not isinstance(error, BrokenPipeError):
        line = f"Could not write the output: {error.strerror}."  # type: ignore[attr-defined]
        output.print_error(program, line, as_json=as_json, code=INTERNAL)


def _is_about_output(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in NO_OUTPUT and error.filename is None


def _bug(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere known"
    return f"internal error: {type(error).__name__}: {error} (at {place}). This is a bug worth reporting."


def _give_stdout_up() -> None:
    """Let what is still buffered go nowhere; the interpreter would complain of it when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
