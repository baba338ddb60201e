"""8: the worker processes of this host against the registry.

A worker's title is `agentpool-worker <pool> <worker id> @<first letters of the installation's id>`. A registered
worker is local when it names this boot and this pid namespace; its process is known by pid and start time.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from agentpool.clock import boottime
from agentpool.doctor.survey import Survey
from agentpool.doctor.violations import Violation, violation
from agentpool.protocol.states import WorkerStatus

__all__ = ["LocalWorker", "check_processes", "local_workers"]

GRACE_S = 10.0
"""A process younger than this may be about to register."""

_TITLE = re.compile(r"agentpool-worker (\S+) (\S+) @(\S+)")


class LocalWorker(msgspec.Struct, frozen=True):
    """A process of this host that says in its title which worker it is; `age` is in seconds."""

    pid: int
    pool: str
    worker_id: str
    age: float


def local_workers(install: str) -> list[LocalWorker]:
    """Return the worker processes of this installation; zombies do not count, and there are none but on Linux."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [worker for pid in pids if (worker := _local_worker(pid, install))]


def _local_worker(pid: int, install: str) -> LocalWorker | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return None
    title, stat = _TITLE.fullmatch(words.strip()), _stat(pid)
    if not title or title[3] != install[:8] or not stat:
        return None
    return LocalWorker(pid, title[1], title[2], age=boottime() - int(stat[19]) / os.sysconf("SC_CLK_TCK"))


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` after the name, which may hold spaces; empty when it does not live."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZXx" else fields


def check_processes(surveys: Iterable[Survey], running: Iterable[LocalWorker]) -> Iterator[Violation]:
    """8: no worker process lives unregistered beyond its grace; no registered local worker lacks its process."""
    records = {worker: record for survey in surveys for worker, record in survey.records.items()}
    for process in running:
        if process.worker_id not in records and process.age > GRACE_S:
            yield violation(8, process.worker_id, f"process {process.pid} runs, but is not registered")
    for worker, record in records.items():
        pid = int(record.get("pid") or 0)
        alive = record.get("status") in (WorkerStatus.STARTING, WorkerStatus.READY, WorkerStatus.DRAINING)
        if alive and pid and _is_here(record) and not _lives(pid, int(record.get("start_time") or 0)):
            yield violation(8, worker, f"is {record['status']}, but its process {pid} does not exist")


def _is_here(record: dict[str, str]) -> bool:
    """Whether the record's pid means anything in this boot and pid namespace."""
    return (record.get("boot_id"), record.get("pid_ns")) == (_boot_id(), _pid_ns())


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _pid_ns() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _lives(pid: int, start_time: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and (not start_time or int(stat[19]) == start_time)
