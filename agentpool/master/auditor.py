"""Takes the audit of executions from Redis to files of JSON lines, and forgets it there once it is on disk.

What was written but not yet forgotten when the leader died is written again by the next: an execution may stand twice,
and is never missing. Files are `<seconds since 1970>-<master>.jsonl`; a full one is closed, and the oldest go.
"""

import asyncio
import os
from io import FileIO
from pathlib import Path

import structlog

from agentpool.clock import wall_ms
from agentpool.master.scope import PoolScope
from agentpool.store.audit import ENTRIES_PER_CALL

__all__ = ["INTERVAL", "Auditor"]

log = structlog.get_logger("auditor")

INTERVAL = 1.0


class Auditor:
    """Drains one pool's audit while this master leads it."""

    def __init__(self, scope: PoolScope) -> None:
        self._scope = scope
        self._path: Path | None = None

    async def drain_once(self) -> float | None:
        """Write everything that is there; returns at once when there was nothing."""
        scope = self._scope
        while scope.token:
            entries = await scope.store.audit.read(scope.pool)
            if not entries:
                return None
            text = "".join(f"{line}\n" for _, lines in entries for line in lines.split("\n") if line)
            try:
                await asyncio.to_thread(self._write, text)
            except OSError as error:
                log.error("audit.not_written", pool=scope.pool, folder=scope.audit_dir, error=str(error))
                return None
            await scope.store.audit.trim(scope.pool, entries[-1][0])
            if len(entries) < ENTRIES_PER_CALL:
                return None
        return None

    def _write(self, text: str) -> None:
        settings, folder = self._scope.settings, Path(self._scope.audit_dir)
        if self._path is None or not self._path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path = folder / f"{wall_ms() // 1000:010d}-{self._scope.master}.jsonl"
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                _write_all(file, text.encode())
                os.fdatasync(file.fileno())
            except OSError:
                file.truncate(before)  # else what is written next would go on in the middle of a line
                raise
            size = file.tell()
        if size >= settings.audit_file_mb * 1e6:
            self._path = None
            for old in sorted(folder.glob("*.jsonl"))[: -settings.audit_files or None]:
                old.unlink(missing_ok=True)


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
