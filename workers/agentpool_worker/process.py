"""Facts about processes, as Linux tells them, and what a worker does to its own."""

import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path

import setproctitle
import structlog

__all__ = [
    "become_worker",
    "catch_stack_dumps",
    "close_quietly",
    "leave",
    "private_bytes",
    "start_time_of",
    "thread_count",
    "worker_title",
    "zygote_title",
]

log = structlog.get_logger("worker")

_dump: Path | None = None
"""Where this worker's stacks go; removed when it ends by itself, read by its master when it had to be killed."""


def start_time_of(pid: int) -> int:
    """Return the kernel's start time of a process in clock ticks since boot; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the name in parentheses and may itself hold spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[19])


def thread_count() -> int:
    """Return the threads of this process, those that Python does not know of included."""
    return len(os.listdir("/proc/self/task"))


def private_bytes() -> int | None:
    """Return the memory that only this process has (USS); it costs the kernel about a millisecond to add up."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def zygote_title(pool: str, install: str) -> None:
    """Say in `ps` whose zygote this is."""
    setproctitle.setproctitle(f"agentpool-zygote {pool} @{install[:8]}")


def worker_title(pool: str, worker_id: str, install: str) -> None:
    """Say in `ps` which worker this is."""
    setproctitle.setproctitle(f"agentpool-worker {pool} {worker_id} @{install[:8]}")


def become_worker() -> None:
    """Leave behind what a fork or exec inherited: session, signal handling, standard input."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    # Ctrl-C is the master's alone; SIGTERM gets its handler once there is a loop, and until then ends the process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)


def catch_stack_dumps(stack_dir: str, worker_id: str) -> None:
    """Have SIGUSR2 write all stacks to a file: done in C, so it works while an agent holds the interpreter's lock."""
    global _dump
    if not stack_dir:
        return
    path = Path(stack_dir) / f"{worker_id}.stack"
    try:
        file = path.open("w")  # stays open for the life of the process
    except OSError as error:
        log.warning("worker.no_stack_dumps", path=str(path), error=str(error))
        return
    faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
    _dump = path


def leave(status: int, *, flush: bool = True) -> None:
    """End this process without waiting for threads that agents left behind.

    Without `flush` it waits for nothing at all: another thread may hold a stream's lock for ever.
    """
    for stream in (sys.stdout, sys.stderr) if flush else ():
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _dump:
        with contextlib.suppress(OSError):
            _dump.unlink()
    os._exit(status)


def close_quietly(fd: int) -> None:
    """Close a descriptor that may be closed already."""
    with contextlib.suppress(OSError):
        os.close(fd)
