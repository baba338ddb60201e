"""Which tasks have begun here, and which has the CPU, in a small file that the master reads when this process died.

The file is mapped into memory, so a mark costs no system call and outlives the process however it ends. Its layout is
in `agentpool.protocol.marks`.
"""

import mmap
import os
from pathlib import Path

import structlog

from agentpool.hosting import Marks
from agentpool.pool.calls import OnCpu
from agentpool.protocol.marks import FILE_BYTES, SLOT_BYTES, SLOTS, mark_path, write_mark

__all__ = ["FileMarks", "open_marks"]

log = structlog.get_logger("worker")


FREE = bytes(SLOT_BYTES)


class FileMarks(Marks):
    """Marks in a mapped file. Number 0 means that all slots are taken: such a task is not marked, and never blamed."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            # Not a hole: on a full disk a store into one ends the process.
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
            self._memory = mmap.mmap(file.fileno(), FILE_BYTES)
        OnCpu.view = memoryview(self._memory)[:4].cast("I")
        self._free = list(range(SLOTS, 0, -1))

    def begin(self, task_id: str, deadline: float = 0.0, mark: int = 0) -> int:
        if not mark:
            if not self._free:
                return 0
            mark = self._free.pop()
        write_mark(self._memory, mark, task_id, deadline)
        return mark

    def end(self, mark: int) -> None:
        if mark:
            start = mark * SLOT_BYTES
            self._memory[start : start + SLOT_BYTES] = FREE
            self._free.append(mark)


def open_marks(mark_dir: str, worker_id: str) -> Marks:
    """Return marks in the file of this worker, or none where there is no folder for it."""
    if not mark_dir:
        return Marks()
    path = mark_path(mark_dir, worker_id)
    try:
        return FileMarks(path)
    except OSError as error:
        log.warning("worker.no_marks", path=str(path), error=str(error))
        return Marks()
