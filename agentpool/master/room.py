"""What room this host has: CPUs, load and memory, as the kernel and the control group allow."""

import os
from pathlib import Path

import msgspec

__all__ = ["Room", "measure_room"]

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MB = 1024 * 1024


class Room(msgspec.Struct, frozen=True):
    """Of the whole host, or of the control group where that allows less."""

    cpus: float
    load: float
    memory_mb: int
    available_mb: int


def measure_room(cgroup: Path = CGROUP) -> Room:
    """Look now; costs well under a millisecond."""
    facts = dict(line.split(":", 1) for line in _read(MEMINFO).splitlines() if ":" in line)
    total, available = (1024 * int(facts.get(name, "0").split()[0]) for name in ("MemTotal", "MemAvailable"))
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if 0 < limit < total:
        total, available = limit, max(0, min(available, limit - used))
    cpus = float(len(os.sched_getaffinity(0)))
    quota = _read(cgroup / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cpus = min(cpus, int(quota[0]) / int(quota[1]))
    return Room(
        cpus=round(cpus, 2), load=round(os.getloadavg()[0], 2), memory_mb=total // MB, available_mb=available // MB
    )


def _number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
