"""What the looking commands of `agentpool` fetch, as plain rows, and how rows become cells for people."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from agentpool.cli import output
from agentpool.client import Client
from agentpool.clock import wall_ms
from agentpool.protocol.events import Event
from agentpool.protocol.records import HostRecord, plain
from agentpool.store.hosts import ALIVE_MS

__all__ = [
    "agent_cells",
    "agents",
    "event_cells",
    "events",
    "follow",
    "host_cells",
    "hosts",
    "pools",
    "report",
    "stats",
    "stats_sheet",
    "worker_cells",
    "workers",
]

Row = dict[str, Any]

HOST_FIELDS = (
    "host_id", "labels", "workers", "workers_max", "cpus", "load", "memory_mb", "available_mb", "min_free_mb",
    "closed", "release", "upgrade", "pid", "started_at", "last_beat",
)  # fmt: skip


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


async def hosts(client: Client, pool: str | None) -> list[Row]:
    """Return the hosts of one pool or of all; one that serves several pools is one row."""
    rows: dict[str, Row] = {}
    for name in await _names(client, pool):
        view = await client.store.hosts.view(name)
        leader = await client.store.locks.leader(name)
        living = {host.master for host in view.living(ALIVE_MS)}
        for host in view.hosts:
            row = rows.setdefault(host.master, _host_row(host, is_alive=host.master in living))
            row["pools"].append(name)
            row["leads"] += [name] if leader == host.master else []
            row["closed"] = row["closed"] or host.closed
    return sorted(rows.values(), key=lambda row: (row["host"], row["master"]))


def _host_row(host: HostRecord, *, is_alive: bool) -> Row:
    row: Row = {"host": host.host, "master": host.master, "status": "beating" if is_alive else "silent"}
    return {**row, "pools": [], "leads": [], **{name: getattr(host, name) for name in HOST_FIELDS}}


def host_cells(row: Row) -> Row:
    """Return a host for people."""
    memory = f"{row['available_mb']} of {row['memory_mb']} MB"
    workers = f"{row['workers']} of {row['workers_max']}" if row["workers_max"] else row["workers"]
    lists = {name: ", ".join(row[name]) for name in ("pools", "leads")}
    return {**row, **lists, "memory": memory, "workers": workers}


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


async def report(client: Client, *, repair: bool, settle: float | None) -> Row:
    """Return what doctor finds, and with `repair` what it mended and left."""
    from agentpool import doctor

    if not repair:
        found = await doctor.examine(client.store, settle=settle)
        return {"violations": [plain(violation) for violation in found]}
    done = await doctor.repair(client.store, settle=settle)
    return {name: [plain(row) for row in getattr(done, name)] for name in ("violations", "mended", "left")}


def _source(client: Client, pool: str | None, **how: Any) -> AsyncIterator[Event]:
    return client.events(**how) if pool is None else client.pool(pool).events(**how)


async def _names(client: Client, pool: str | None) -> list[str]:
    return [pool] if pool is not None else await client.backend.pool_names()
