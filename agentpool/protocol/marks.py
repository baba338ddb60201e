"""The file in which a worker marks what it runs: fixed slots of text, the first of them the number that has the CPU."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["FILE_BYTES", "SLOTS", "SLOT_BYTES", "blame", "mark_path", "read_marks"]

SLOT_BYTES = 96
"""An id is a pool's name of at most 64 characters, a slash and 22 more."""
SLOTS = 2047
FILE_BYTES = SLOT_BYTES * (SLOTS + 1)


def mark_path(folder: str, worker_id: str) -> Path:
    """Return where the marks of a worker are."""
    return Path(folder) / f"{worker_id}.marks"


def read_marks(data: bytes) -> tuple[list[str], str]:
    """Return the ids of the tasks that had begun, and the one that had the CPU, or ''."""
    begun: dict[int, str] = {}
    for mark in range(1, min(len(data) // SLOT_BYTES, SLOTS + 1)):
        raw = data[mark * SLOT_BYTES : (mark + 1) * SLOT_BYTES]
        if raw[0]:
            begun[mark] = raw.rstrip(b"\0").decode(errors="replace")
    return list(begun.values()), begun.get(int.from_bytes(data[:4], "little"), "")


def blame(begun: list[str], on_cpu: str, *, by_itself: bool) -> Mapping[str, str]:
    """Say of each task that had begun whether it is suspect.

    The one whose code had the CPU is. Where none had it and the process ended `by_itself`, all are: a thread that one
    of them started may have done it. A process that was killed from outside while its agents waited proves nothing
    against any of them.
    """
    if on_cpu:
        return {id: "suspect" if id == on_cpu else "started" for id in begun}
    return dict.fromkeys(begun, "suspect" if by_itself else "started")
