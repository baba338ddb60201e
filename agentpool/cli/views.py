"""What the looking commands of `agentpool` fetch, as plain rows, and how rows become cells for people."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from agentpool.cli import output
from agentpool.client import Client
from agentpool.clock import wall_ms
from agentpool.protocol.events import Event
from agentpool.protocol.records import plain

__all__ = [
    "agent_cells",
    "agents",
    "event_cells",
    "events",
    "follow",
    "pools",
    "stats",
    "stats_sheet",
    "violations",
    "worker_cells",
    "workers",
]

Row = dict[str, Any]


async def pools(client: Client) -> list[Row]:
    """Return all pools."""
    return [plain(info) for info in await client.pools()]


async def stats(client: Client, pool: str | None) -> Row | list[Row]:
    """Return one pool's numbers, or a list of all pools'."""
    if pool is not None:
        return plain(await client.pool(pool).stats())
    return [plain(one) for one in await client.stats()]


def stats_sheet(stats: Row) -> tuple[str, list[tuple[str, Any]]]:
    """Return title and lines of one pool's numbers."""
    used, total = stats["used_capacity"], stats["total_capacity"]
    workers = f"{stats['process_count']} registered, {stats['active_worker_processes']} beating"
    bounds = f"{stats['min_workers']} to {stats['max_workers']}, {stats['desired_workers']} wanted now"
    moving = ((stats["starting_workers"], "starting"), (stats["draining_workers"], "draining"))
    extra = "".join(f", {count} {state}" for count, state in moving if count)
    return f"Pool {stats['pool_name']}", [
        ("role", stats["role_type"]),
        ("workers", f"{workers}{extra} (bounds {bounds})"),
        ("slots", f"{used} of {total} used, {stats['available_capacity']} free ({stats['utilization']:.0%})"),
        ("agents", f"{stats['agent_count']}, of which {stats['pending_agents']} wait for a place"),
        (
            "tasks",
            f"{stats['queued_tasks']} queued by type, {stats['running_tasks']} running, "
            f"{stats['delayed_tasks']} delayed, {stats['dead_tasks']} dead",
        ),
        ("leader", stats["leader"] or "none: start agentpool-master"),
        ("restarts", f"given up: {stats['restarts']}" if stats["restarts"] else ""),
    ]


async def workers(client: Client, pool: str | None) -> list[Row]:
    """Return the workers of one pool or of all."""
    return [plain(record) for name in await _names(client, pool) for record in await client.pool(name).workers()]


def worker_cells(row: Row) -> Row:
    """Return a worker for people."""
    memory = f"{row['memory_bytes'] / 2**20:.1f} MB" if row["memory_bytes"] else ""
    return {**row, "memory": memory, "memory_bytes": memory, "started": output.ages(wall_ms(), row["started_at"])}


async def agents(client: Client, pool: str | None, **filters: str | None) -> list[Row]:
    """Return the live agents of one pool or of all."""
    names = await _names(client, pool)
    return [plain(record) for name in names for record in await client.pool(name).agents(**filters)]


def agent_cells(row: Row) -> Row:
    """Return an agent for people."""
    return {**row, "last_used": output.ages(wall_ms(), row["last_used_at"])}


async def events(client: Client, pool: str | None, limit: int) -> list[Row]:
    """Return the latest events of one pool or of all."""
    return [plain(event) async for event in _source(client, pool, limit=limit)]


async def follow(client: Client, pool: str | None, *, as_json: bool) -> None:
    """Print events as they come, until interrupted."""
    async for event in _source(client, pool, follow=True):
        if as_json:
            output.print_json(plain(event))
        else:
            cells = event_cells(plain(event))
            words = (cells.get(column, "") for column in output.EVENT_COLUMNS)
            print("  ".join(str(word) for word in words if word), flush=True)


def event_cells(row: Row) -> Row:
    """Return an event for people."""
    return {**row, "time": datetime.fromtimestamp(row["at"] / 1000).strftime("%H:%M:%S.%f")[:-3]}


async def violations(client: Client) -> list[Row]:
    """Return what doctor finds."""
    from agentpool.doctor import examine

    return [plain(violation) for violation in await examine(client.store)]


def _source(client: Client, pool: str | None, **how: Any) -> AsyncIterator[Event]:
    return client.events(**how) if pool is None else client.pool(pool).events(**how)


async def _names(client: Client, pool: str | None) -> list[str]:
    return [pool] if pool is not None else await client.backend.pool_names()
