"""What the commands about tasks, dead letters, tenants and the audit fetch, as plain rows and as cells for people."""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec

from agentpool.cli import output
from agentpool.client import Client
from agentpool.client.audit import AuditQuery, executions
from agentpool.clock import wall_ms
from agentpool.protocol.codec import encode_json
from agentpool.protocol.events import TaskEvent
from agentpool.protocol.keys import pool_of
from agentpool.protocol.records import plain
from agentpool.protocol.tasks import DeadLetter

__all__ = [
    "audit",
    "execution_cells",
    "follow_task",
    "letter",
    "letter_cells",
    "letter_sheet",
    "letters",
    "task",
    "task_sheet",
    "tenant_cells",
    "tenants",
]

Row = dict[str, Any]


# -- tasks ------------------------------------------------------------------------------------------------------


async def task(client: Client, task_id: str) -> Row:
    """Return what is known of a task."""
    return await client.task(task_id).info()


def task_sheet(row: Row) -> tuple[str, list[tuple[str, Any]]]:
    """Return title and lines of a task."""
    facts = {name: value for name, value in row.items() if value is not None}
    error = facts.pop("error", None) or {}
    lines = [(name, _shown(value)) for name, value in facts.items() if name != "task_id"]
    lines += [(name, value) for name in ("error", "traceback") if (value := _error_parts(error).get(name))]
    return f"Task {row['task_id']}", lines


async def follow_task(client: Client, task_id: str, *, as_json: bool) -> None:
    """Print what happens to a task, a line each, until it has its outcome."""
    handle = client.task(task_id)
    async with contextlib.aclosing(handle.events()) as events:
        async for event in events:
            if event.type == "task.finished":
                outcome = await handle.info()
                event = msgspec.structs.replace(event, detail=outcome["status"])
            _print_event(event, as_json=as_json)


def _print_event(event: TaskEvent, *, as_json: bool) -> None:
    if as_json:
        output.print_json(plain(event))
        return
    data = "" if event.data is None else _shown(event.data)
    words = (_time(event.at) if event.at else "", event.type, _said(event.detail), data)
    print("  ".join(word for word in words if word), flush=True)


def _said(detail: str) -> str:
    """Return a detail for people: an outcome or an error as its error alone."""
    if not detail.startswith("{"):
        return detail
    try:
        return _error_text(json.loads(detail))
    except ValueError:
        return detail


# -- dead letters -----------------------------------------------------------------------------------------------


async def letters(client: Client, pool: str | None, limit: int, **filters: Any) -> list[Row]:
    """Return the oldest dead letters of one pool or of all that fit, at most `limit`, without their inputs."""
    names = [pool] if pool is not None else await client.backend.pool_names()
    rows: list[Row] = []
    for name in names:
        async with contextlib.aclosing(client.pool(name).dead_letters(**filters)) as found:
            rows += await _first(found, limit)
    return sorted(rows, key=lambda row: row["died_at"])[:limit]


async def _first(found: AsyncIterator[DeadLetter], limit: int) -> list[Row]:
    rows: list[Row] = []
    async for letter in found:
        rows.append(_letter_row(letter))
        if len(rows) >= limit:
            break
    return rows


async def letter(client: Client, task_id: str) -> Row:
    """Return one dead letter, with its input and what went wrong at each attempt."""
    found = await client.pool(pool_of(client.task(task_id).id)).dead_letter(task_id)
    errors = {name: json.loads(bytes(text)) for name, text in found.errors.items()}
    tries = [
        {"attempt": name, "process_id": said.get("process_id", ""), "error": said.get("error") or {}}
        for name, said in sorted(errors.items(), key=_place)
    ]
    return {**_letter_row(found), "input": json.loads(bytes(found.input)), "errors": tries}


def _place(pair: tuple[str, Any]) -> tuple[str, int]:
    """Attempts first, then crashes and failed starts, each by its number."""
    kind, _, number = pair[0].rpartition(" ")
    return kind, int(number)


def _letter_row(letter: DeadLetter) -> Row:
    outcome = json.loads(bytes(letter.outcome)) or {}
    return {
        "task_id": letter.task_id,
        "kind": letter.kind,
        "tenant": letter.tenant,
        "agent_type": letter.agent_type,
        "agent_id": f"{pool_of(letter.task_id)}/{letter.agent_name}" if letter.agent_name else "",
        "died_at": letter.died_at,
        "attempts": letter.attempts,
        "crashes": letter.crashes,
        "starts": letter.starts,
        "error": _error_text(outcome),
    }


def letter_cells(row: Row) -> Row:
    """Return a dead letter for people."""
    died = f"{output.ages(wall_ms(), row['died_at'])} ago"
    return {**row, "agent": row["agent_id"] or row["agent_type"], "died": died, "error": row["error"][:100]}


def letter_sheet(row: Row) -> tuple[str, list[tuple[str, Any]]]:
    """Return title and lines of a dead letter."""
    facts = [
        ("kind", row["kind"]),
        ("agent", row["agent_id"] or row["agent_type"]),
        ("tenant", row["tenant"]),
        ("died", f"{output.ages(wall_ms(), row['died_at'])} ago"),
        ("attempts", row["attempts"]),
        ("crashes", row["crashes"] or ""),
        ("failed starts", row["starts"] or ""),
        ("input", _shown(row["input"])),
    ]
    for tried in row["errors"]:
        name = f"attempt {tried['attempt']}" if tried["attempt"].isdigit() else tried["attempt"]
        worker = f" (worker {tried['process_id']})" if tried["process_id"] else ""
        facts.append((name, _error_text(tried) + worker))
    traceback = row["errors"][-1]["error"].get("traceback", "") if row["errors"] else ""
    return f"Dead letter {row['task_id']}", [*facts, ("traceback", traceback)]


# -- tenants ----------------------------------------------------------------------------------------------------


async def tenants(client: Client, pool: str | None) -> list[Row]:
    """Return what the tenants of one pool or of all use, and their limits."""
    names = [pool] if pool is not None else await client.backend.pool_names()
    return [{"pool_name": name, **plain(usage)} for name in names for usage in await client.pool(name).tenants()]


def tenant_cells(row: Row) -> Row:
    """Return a tenant for people: what it uses, a slash, and its limit if it has one."""
    limits = row["limits"]

    def against(used: str, limit: str) -> str:
        return f"{row[used]}/{limits[limit]}" if limits[limit] else str(row[used])

    return {
        **row,
        "weight": limits["weight"],
        "agents": against("agents", "agents"),
        "running": against("running", "running"),
        "queued": against("queued", "queued"),
        "tokens": against("tokens_last_minute", "tokens_per_minute"),
        "requests": against("requests_last_minute", "requests_per_minute"),
        "tokens_per_task": limits["tokens_per_task"] or "",
        "held": "yes" if row["held"] else "",
    }


# -- the audit --------------------------------------------------------------------------------------------------


async def audit(client: Client, pool: str | None, query: AuditQuery) -> tuple[list[Row], list[str]]:
    """Return the latest executions of one pool or of all, oldest first, and notes on what may be missing."""
    names = [pool] if pool is not None else await client.backend.pool_names()
    rows: list[Row] = []
    notes: list[str] = []
    for name in names:
        found, note = await executions(client, name, query)
        rows += found
        notes += [note] if note else []
    return sorted(rows, key=lambda row: row["at"])[-query.limit :], notes


def execution_cells(row: Row) -> Row:
    """Return an execution for people."""
    agent = row.get("agent_id") or row.get("agent_type")
    time = datetime.fromtimestamp(row["at"] / 1000).strftime("%Y-%m-%d %H:%M:%S")
    return {**row, "time": time, "agent": agent, "error": row.get("error", "")[:100]}


# -- words ------------------------------------------------------------------------------------------------------


def _error_parts(error: Row) -> dict[str, str]:
    kind, message = error.get("type", ""), error.get("message", "")
    return {"error": ": ".join(word for word in (kind, message) if word), "traceback": error.get("traceback", "")}


def _error_text(said: Row) -> str:
    """Return the error of an outcome, or of what is an error itself, on one line."""
    return " ".join(_error_parts(said.get("error") or said)["error"].split())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).strftime("%H:%M:%S.%f")[:-3]
