"""Doing harm to processes of an installation on this host: workers die, freeze, and go on.

A worker is found by its id, which stands in the title of its process.
"""

import os
import signal
from collections.abc import Iterator

import psutil

__all__ = ["freeze_worker", "kill_worker", "running_processes", "thaw_worker", "worker_pid"]


def worker_pid(process_id: str) -> int:
    """Return the pid of a worker; raises `LookupError` when none of this host has this id."""
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline()).split()
            if words[:1] == ["agentpool-worker"] and process_id in words and process.status() != psutil.STATUS_ZOMBIE:
                return int(process.pid)
        except psutil.Error:
            continue
    raise LookupError(f"no worker {process_id} runs on this host; list them with: agentpool workers")


def kill_worker(process_id: str) -> None:
    """Kill a worker as a crash would: its master gives back what it held and starts another."""
    os.kill(worker_pid(process_id), signal.SIGKILL)


def freeze_worker(process_id: str) -> None:
    """Stop a worker's process: it is alive and silent, until it is thawed, or found out and killed."""
    os.kill(worker_pid(process_id), signal.SIGSTOP)


def thaw_worker(process_id: str) -> None:
    """Let a frozen worker go on."""
    os.kill(worker_pid(process_id), signal.SIGCONT)


def running_processes(folder: str) -> list[psutil.Process]:
    """Return the processes of agentpool that have files of this folder open: master, zygotes, workers, the server."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_of(process, folder)]


def _is_of(process: psutil.Process, folder: str) -> bool:
    try:
        title = " ".join(process.cmdline())
        return ("agentpool" in title or "server" in title) and any(folder in path for path in _open_files(process.pid))
    except (psutil.Error, OSError):
        return False


def _open_files(pid: int) -> Iterator[str]:
    return (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
