"""Processes that cannot be mistaken for others: told apart by more than their pid, signalled through pidfds."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "child_process", "held", "reap", "send_signal", "status_of", "wait_for_exit"]


@dataclass(frozen=True)
class Process:
    """One process, for ever: its pid may be given to another later, the rest not.

    `start_time` is in clock ticks since boot, as in /proc/<pid>/stat: unlike wall-clock time it never shifts.
    """

    pid: int
    start_time: int
    boot_id: str
    pid_ns: int

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this pid now; None if there is none, or only its zombie."""
        status = status_of(pid)
        if status is None or status.is_dead:
            return None
        return cls(pid, status.start_time, _boot_id(), _pid_namespace())

    def is_alive(self) -> bool:
        return self == Process.of(self.pid)


@dataclass(frozen=True)
class _Status:
    state: str
    parent: int
    threads: int
    start_time: int

    @property
    def is_dead(self) -> bool:
        """A zombie, and the last of its threads: before that, its files, sockets and locks may still be open."""
        return self.state in "ZXx" and self.threads <= 1


def status_of(pid: int) -> _Status | None:
    """What the kernel says of a pid; None when nobody has it."""
    try:
        # The name, in parentheses, may hold anything; what follows its last parenthesis are plain fields.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Status(fields[0], parent=int(fields[1]), threads=int(fields[17]), start_time=int(fields[19]))


def child_process(pid: int) -> Process:
    """A child of ours that was not reaped yet, also when it is dead already."""
    status = status_of(pid)
    assert status is not None, "a child stays in the process table until it is reaped"
    return Process(pid, status.start_time, _boot_id(), _pid_namespace())


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def reap(process: Process) -> int | None:
    """Take a dead child off the process table; its exit status (negative: signal), or None if it is not ours."""
    status = status_of(process.pid)
    if status is None or not status.is_dead or status.parent != os.getpid():
        return None
    if status.start_time != process.start_time:
        return None
    with suppress(ChildProcessError):
        reaped, code = os.waitpid(process.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(code) if reaped else None
    return None


@contextmanager
def held(process: Process) -> Iterator[int | None]:
    """A pidfd of exactly this process, or None when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Compared after opening: from here on the descriptor cannot come to mean another process.
        yield fd if process.is_alive() else None
    finally:
        os.close(fd)


def wait_for_exit(pidfd: int, seconds: float) -> bool:
    """Whether the process ends within this time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Signal the process; nothing happens when it has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
