"""Facts about other processes, as Linux tells them."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["children_of", "cpu_seconds", "private_bytes", "title_of"]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that the processes used so far, all threads, to the nanosecond where `ps` has 10 ms."""
    # The kernel derives the id of a process's CPU clock from its pid (clock_getcpuclockid(3)).
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def private_bytes(pid: int) -> int:
    """Return the memory that only this process has (USS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    texts = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    return [int(child) for text in texts for child in text.split()]


def title_of(pid: int) -> str:
    """Return a process's command line, or the title it gave itself."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
