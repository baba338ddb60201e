"""The file in which a worker marks what it runs: fixed slots, the first of them the number that has the CPU.

A slot holds the task's deadline, by this host's monotonic clock and 0 for none, and its id. A pinned agent has a slot
for what it does beside its tasks: starting, `background()`, and so on.
"""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

__all__ = ["FILE_BYTES", "SLOTS", "SLOT_BYTES", "Begun", "agent_mark", "blame", "mark_path", "read_marks", "write_mark"]

SLOT_BYTES = 96
"""A deadline takes 8. An id is a pool's name of at most 64 characters, a slash and 22 more."""
SLOTS = 2047
FILE_BYTES = SLOT_BYTES * (SLOTS + 1)

_slot = struct.Struct(f"<d{SLOT_BYTES - 8}s")


class Begun(msgspec.Struct, frozen=True):
    """A task that had begun; `deadline` is 0 for none."""

    task_id: str
    deadline: float = 0.0


def agent_mark(name: str) -> str:
    """Return what stands for a pinned agent where tasks have their ids, and in what the reaper is told."""
    return f"@{name}"


def mark_path(folder: str, worker_id: str) -> Path:
    """Return where the marks of a worker are."""
    return Path(folder) / f"{worker_id}.marks"


def write_mark(memory: mmap.mmap | bytearray, mark: int, task_id: str, deadline: float) -> None:
    """Fill a slot; a free one holds zeros."""
    _slot.pack_into(memory, mark * SLOT_BYTES, deadline, task_id.encode())


def read_marks(data: bytes) -> tuple[list[Begun], str]:
    """Return the tasks that had begun, and the id of the one that had the CPU, or ''."""
    begun: dict[int, Begun] = {}
    for mark in range(1, min(len(data) // SLOT_BYTES, SLOTS + 1)):
        deadline, text = _slot.unpack_from(data, mark * SLOT_BYTES)
        if id := text.rstrip(b"\0"):
            begun[mark] = Begun(id.decode(errors="replace"), deadline)
    running = begun.get(int.from_bytes(data[:4], "little"))
    return list(begun.values()), running.task_id if running else ""


def blame(begun: list[Begun], on_cpu: str, *, by_itself: bool, killed_at: float = 0.0) -> Mapping[str, str]:
    """Say of each task that had begun whether it is suspect.

    The one whose code had the CPU is. Where none had it and the process ended `by_itself`, all are: a thread that one
    of them started may have done it. A process that was killed from outside while its agents waited proves nothing
    against any of them. `killed_at` is given when it was ended because it was blocked or frozen: where the
    time of the one that had the CPU was over by then, it is overdue, which only the block kept from being told.

    Of pinned agents, beside their tasks, only the one whose code had the CPU is named: there are always many.
    """
    tasks = [task for task in begun if not task.task_id.startswith("@")]
    found = {task.task_id: "suspect" if by_itself and not on_cpu else "started" for task in tasks}
    for task in begun:
        if task.task_id == on_cpu:
            found[on_cpu] = "overdue" if 0 < task.deadline <= killed_at else "suspect"
    return found
