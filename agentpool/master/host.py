"""Who and where this host is, and who a process of it is.

"Local" means the same host id, boot id and pid namespace: boot id and pid alone are equal across containers. A
process is known by pid *and* start time, and is signalled only through a pidfd that was opened before the two were
compared, so a reused pid is never touched.
"""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from agentpool.errors import ConfigError, UnsupportedPlatform
from agentpool.protocol.codec import new_id
from agentpool.protocol.records import WorkerRecord

__all__ = ["Host", "is_stopped", "open_process", "require_linux", "send_signal", "start_time"]


class Host(msgspec.Struct, frozen=True):
    """Identity of the machine, boot and pid namespace that this process runs in."""

    name: str
    host_id: str
    boot_id: str
    pid_ns: str

    @property
    def master_id(self) -> str:
        """The id of this host's master: the same after a restart, so that it finds its workers again."""
        return f"{self.name}-{self.host_id[:8]}"

    def is_local(self, worker: WorkerRecord) -> bool:
        """Tell whether the worker's pid means anything here."""
        theirs = (worker.host_id, worker.boot_id, worker.pid_ns)
        return theirs == (self.host_id, self.boot_id, self.pid_ns)

    @classmethod
    def find(cls, data_dir: Path, host_id: str = "") -> "Host":
        """Read this host's identity; the generated part is kept in the data directory."""
        return cls(
            name=socket.gethostname(),
            host_id=host_id or _kept_id(data_dir / "host_id"),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_ns=os.readlink("/proc/self/ns/pid"),
        )


def _kept_id(path: Path) -> str:
    try:
        if not path.exists():
            path.write_text(new_id() + "\n")
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another data_dir.") from None


def require_linux() -> None:
    """Raise `UnsupportedPlatform` where the daemon cannot work."""
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        raise UnsupportedPlatform(
            "agentpool-master needs Linux 5.4 or later (it watches workers through pidfds). "
            "The client library works here: run the master on a Linux host and connect to its Redis."
        )


def start_time(pid: int) -> int:
    """Return the kernel's start time of a process in clock ticks since boot; 0 when it does not exist."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal or a tracer."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in "Tt"


def cpu_ticks(pid: int) -> int:
    """Return the CPU time that a process used, in clock ticks; 0 when it does not exist."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` after the name, which may hold spaces; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] in "ZX" else fields


def open_process(pid: int, started: int) -> int | None:
    """Return a pidfd of the process with this pid and start time, or None when it is gone or another's by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if started and start_time(pid) == started:
        return pidfd
    os.close(pidfd)
    return None


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Signal the process behind a pidfd; quiet when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
