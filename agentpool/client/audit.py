"""The audit of executions as a whole: what is still in Redis, and the files to which a leader took the rest.

A leader writes them on its own host (see `agentpool.master.auditor`), so what is found depends on where one looks; the
note that comes along says what may be missing.
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from agentpool.client.client import Client

__all__ = ["AuditQuery", "executions"]

Row = dict[str, Any]


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which executions are wanted: the latest `limit`; what is empty or None fits all."""

    tenant: str = ""
    task_id: str = ""
    agent_type: str = ""
    status: str = ""
    since: float | None = None
    """Seconds ago, at most, that they ended."""
    limit: int = 100


async def executions(client: Client, pool: str, query: AuditQuery) -> tuple[list[Row], str]:
    """Return the executions of a pool that fit, oldest first, and what is to be said of those that may be missing.

    Raises `UnknownPool`.
    """
    leader = (await client.pool(pool).info()).leader
    store = client.store
    since_ms = 0 if query.since is None else await store.connection.now_ms() - int(1000 * query.since)
    found = _Found(query, since_ms)
    # Redis first: what goes from there to a file meanwhile is read twice, and never missed.
    after = "-"
    while entries := await store.audit.read(pool, after):
        after = entries[-1][0]
        found.add(line.encode() for _, lines in entries for line in lines.splitlines())
    folder = Path(client.data_dir) / "audit" / pool
    note = await asyncio.to_thread(_read_files, folder, found, leader)
    return found.rows(), note


class _Found:
    """Executions that fit, each once: what was written again after a crash of a leader is the same line."""

    def __init__(self, query: AuditQuery, since_ms: int) -> None:
        self._query, self.since_ms = query, since_ms
        self._lines: dict[bytes, Row] = {}
        self._wanted = {
            name: value for name in ("tenant", "task_id", "agent_type", "status") if (value := getattr(query, name))
        }
        # Looked for before a line is decoded; a slash may be escaped in it.
        self._needles = [value.rpartition("/")[2].encode() for value in self._wanted.values()]

    @property
    def is_full(self) -> bool:
        return len(self._lines) >= self._query.limit

    def add(self, lines: Iterable[bytes]) -> None:
        """Take the latest of some lines that are later than all those that come after them."""
        self._lines.update(deque(self._fitting(lines), maxlen=self._query.limit))

    def rows(self) -> list[Row]:
        return sorted(self._lines.values(), key=lambda row: row["at"])[-self._query.limit :]

    def _fitting(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, Row]]:
        for line in lines:
            text = line.rstrip(b"\n")
            if not all(needle in text for needle in self._needles):
                continue
            try:
                row = json.loads(text)
                fits = all(row.get(name, "") == value for name, value in self._wanted.items())
                if fits and row["at"] >= self.since_ms:
                    yield text, row
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that a crash cut off


def _read_files(folder: Path, found: _Found, leader: str) -> str:
    """Read the newest files first, as far as needed; returns the note."""
    try:
        names = sorted((entry.name for entry in os.scandir(folder) if entry.name.endswith(".jsonl")), reverse=True)
    except FileNotFoundError:
        names = []
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}. Shown is what is still in Redis."
    for name in names:
        if found.is_full:
            break
        try:
            with (folder / name).open("rb") as file:
                if 1000 * os.fstat(file.fileno()).st_mtime >= found.since_ms:
                    found.add(file)
        except FileNotFoundError:
            continue  # the oldest files are removed
        except OSError as error:
            return f"{folder / name} cannot be read: {error.strerror}. Older executions are not shown."
    if not names and not leader:
        return f"There are no audit files in {folder}. Shown is what is still in Redis."
    if leader and not any(name.endswith(f"-{leader}.jsonl") for name in names):
        return (
            f"There are no audit files of the pool's leader, {leader}, in {folder}: what it has taken from Redis is in "
            "the data directory of its host."
        )
    return ""
