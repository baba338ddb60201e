"""What the operator sees: JSON documents, tables on a terminal, aligned text in a pipe, one line for an error."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentpool.errors import AgentPoolError

__all__ = [
    "AGENT_COLUMNS",
    "EVENT_COLUMNS",
    "EXECUTION_COLUMNS",
    "HOST_COLUMNS",
    "LEFT_COLUMNS",
    "LETTER_COLUMNS",
    "MENDED_COLUMNS",
    "POOL_COLUMNS",
    "SPAWN_COLUMNS",
    "STATS_COLUMNS",
    "TENANT_COLUMNS",
    "VIOLATION_COLUMNS",
    "WORKER_COLUMNS",
    "ages",
    "print_error",
    "print_json",
    "print_note",
    "print_rows",
    "print_sheet",
    "redis_text",
]

Row = Mapping[str, Any]
Columns = Mapping[str, str]

POOL_COLUMNS = {
    "pool_name": "pool",
    "role_type": "role",
    "min_workers": "min",
    "max_workers": "max",
    "desired": "desired",
    "agents_per_worker": "agents/worker",
    "placement": "placement",
    "leader": "leader",
    "status": "status",
}
STATS_COLUMNS = {
    "pool_name": "pool",
    "process_count": "workers",
    "active_worker_processes": "beating",
    "max_workers": "max",
    "total_capacity": "slots",
    "used_capacity": "used",
    "available_capacity": "free",
    "agent_count": "agents",
    "pending_agents": "pending",
    "queued_tasks": "queued",
    "running_tasks": "running",
    "delayed_tasks": "delayed",
    "dead_tasks": "dead",
    "utilization": "load",
}
WORKER_COLUMNS = {
    "process_id": "worker",
    "pool_name": "pool",
    "status": "status",
    "pid": "pid",
    "host": "host",
    "agent_count": "agents",
    "task_count": "tasks",
    "capacity": "slots",
    "memory_bytes": "memory",
    "cpu_percent": "cpu %",
    "loop_lag_ms": "lag ms",
    "started": "started",
}
HOST_COLUMNS = {
    "host": "host",
    "master": "master",
    "status": "status",
    "pools": "pools",
    "leads": "leads",
    "labels": "labels",
    "workers": "workers",
    "cpus": "cpus",
    "load": "load",
    "memory": "memory free",
    "release": "release",
    "closed": "starts none because",
}
AGENT_COLUMNS = {
    "agent_id": "agent",
    "agent_type": "type",
    "status": "status",
    "tenant": "tenant",
    "project": "project",
    "process_id": "worker",
    "run_count": "runs",
    "last_used": "last used",
    "last_error": "last error",
}
SPAWN_COLUMNS = {"agent_id": "agent", "process_id": "worker", "pool_name": "pool", "status": "status"}
EVENT_COLUMNS = {
    "time": "time",
    "pool_name": "pool",
    "type": "event",
    "agent_id": "agent",
    "process_id": "worker",
    "detail": "detail",
}
LETTER_COLUMNS = {
    "task_id": "task",
    "kind": "kind",
    "agent": "agent",
    "tenant": "tenant",
    "died": "died",
    "attempts": "attempts",
    "crashes": "crashes",
    "error": "error",
}
TENANT_COLUMNS = {
    "pool_name": "pool",
    "tenant": "tenant",
    "weight": "weight",
    "agents": "agents",
    "running": "running",
    "queued": "queued",
    "tokens": "tokens/min",
    "requests": "requests/min",
    "tokens_per_task": "tokens/task",
    "mean_ms": "mean ms",
    "held": "held",
    "set_live": "set live",
}
EXECUTION_COLUMNS = {
    "time": "time",
    "task_id": "task",
    "status": "status",
    "tenant": "tenant",
    "agent": "agent",
    "process_id": "worker",
    "attempt": "attempt",
    "duration_ms": "ms",
    "tokens": "tokens",
    "error": "error",
}
VIOLATION_COLUMNS = {"invariant": "no", "name": "invariant", "subject": "subject", "detail": "detail"}
MENDED_COLUMNS = {"invariant": "no", "subject": "subject", "detail": "detail", "did": "done"}
LEFT_COLUMNS = {"invariant": "no", "subject": "subject", "detail": "detail", "why": "left because", "next_step": "do"}


def print_json(document: Any) -> None:
    """Print one document on one line."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


def print_rows(rows: Sequence[Row], columns: Columns, *, empty: str) -> None:
    """Print a table: with rules and colour on a terminal, else aligned words under one line of headings."""
    if not rows:
        print(empty)
    elif sys.stdout.isatty():
        _print_table(rows, columns)
    else:
        _print_aligned([list(columns.values()), *([_cell(row, key) for key in columns] for row in rows)])


def print_sheet(title: str, facts: Iterable[tuple[str, Any]]) -> None:
    """Print facts about one thing, a line each."""
    lines = [(name, str(value)) for name, value in facts if value != ""]
    width = max(len(name) for name, _ in lines)
    print(_bold(title))
    for name, value in lines:
        print(f"  {name:<{width}}  {value}")


def print_error(program: str, error: AgentPoolError | str, *, as_json: bool, code: str = "") -> None:
    """Print one clear line to standard error."""
    message = " ".join(str(error).split())
    code = code or getattr(error, "code", "ERROR")
    document = json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False)
    print(document if as_json else f"{program}: {message}", file=sys.stderr, flush=True)


def print_note(program: str, text: str) -> None:
    """Print one line to standard error that is no error."""
    print(f"{program}: note: {text}", file=sys.stderr, flush=True)


def ages(now_ms: int, at_ms: int) -> str:
    """Return how long ago something was, like `12 s` or `3 h`; times in ms."""
    if not at_ms:
        return "-"
    seconds = max(0, now_ms - at_ms) // 1000
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def redis_text(reply: Any, indent: str = "") -> str:
    """Return a reply as redis-cli shows it."""
    match reply:
        case None:
            return "(nil)"
        case int():
            return f"(integer) {reply}"
        case b"OK" | b"PONG" | b"QUEUED":
            return str(reply.decode())
        case bytes():
            return json.dumps(reply.decode(errors="backslashreplace"), ensure_ascii=False)
        case []:
            return "(empty array)"
        case list():
            return _redis_list(reply, indent)
        case _:
            return f"(error) {reply}"


def _redis_list(items: list[Any], indent: str) -> str:
    width = len(str(len(items)))
    inner = indent + " " * (width + 2)
    lines = [f"{number:>{width}}) {redis_text(item, inner)}" for number, item in enumerate(items, 1)]
    return f"\n{indent}".join(lines)


def _print_table(rows: Sequence[Row], columns: Columns) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for key, heading in columns.items():
        table.add_column(heading, justify="right" if _is_number(rows[0].get(key)) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row, key)) for key in columns))
    Console().print(table)


def _print_aligned(lines: list[list[str]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(row: Row, key: str) -> str:
    value = row.get(key)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "-" if value is None or value == "" else " ".join(text.split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text
