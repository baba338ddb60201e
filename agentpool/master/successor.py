"""A master makes room for its successor: the same process runs the program anew, as it is installed by now.

Process id, control group and service manager's view stay, workers and embedded server go on, and the successor adopts
them. What is installed is checked first, by itself: a release, a configuration or agents that do not load change
nothing. Signals that come in between are kept for the successor.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence

__all__ = ["become_successor", "keep_signals", "successor_problem", "take_kept_signals"]

CHECK_TIMEOUT = 120.0
KEPT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


async def successor_problem(flags: Sequence[str]) -> str:
    """Return what is wrong with what is installed and configured now, as its own `check` tells, or ''."""
    program = [sys.executable, "-P", "-c", "from agentpool.cli.master import main; main()"]
    process = await asyncio.create_subprocess_exec(
        *program, "check", "--json", *flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            out, err = await process.communicate()
    except TimeoutError:
        return f"its check did not end within {CHECK_TIMEOUT:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return ""
    try:
        return "; ".join(json.loads(out)["errors"])
    except (ValueError, KeyError, TypeError):
        return err.decode(errors="replace").strip() or f"its check ended with status {process.returncode}"


def keep_signals() -> None:
    """Let signals wait from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, KEPT)


def take_kept_signals() -> None:
    """Let those through that waited for this process; called once it handles them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, KEPT)


def become_successor(unheard: Iterable[signal.Signals]) -> None:
    """Run the program anew in this very process; never returns. `unheard`: signals that came too late to be heeded."""
    for number in unheard:
        os.kill(os.getpid(), number)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (ourselves)
