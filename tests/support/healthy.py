"""A small pool in which a little of everything is going on, for doctor to look at."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from support.seeds import incarnation
from support.tiny_pool import POOL, TinyPool, tiny_pool

from agentpool.protocol.tasks import TaskEnvelope, TaskHeader
from agentpool.store.tasks import SubmitOptions

__all__ = ["healthy_pool", "spawn", "submit"]


@asynccontextmanager
async def healthy_pool(url: str) -> AsyncIterator[TinyPool]:
    """Agents a and b run on w1, where a has mail and b works; one task by type waits, one runs; c waits for a place."""
    async with tiny_pool(url) as pool:
        await pool.add_worker("w1", capacity=3, works=False)
        for name in ("a", "b"):
            await spawn(pool, name)
            await pool.store.agents.confirm(POOL, "w1", name, await incarnation(pool.store, name, POOL))
        await submit(pool, "b1", agent="b")
        await submit(pool, "t1")
        found = await pool.store.tasks.exchange(POOL, "w1", 1, room=1, names=["b"])
        assert found
        assert len(found.tasks) == 2
        await submit(pool, "a1", agent="a")
        await submit(pool, "t2")
        await spawn(pool, "c")  # there is no room: it waits
        yield pool


async def spawn(pool: TinyPool, name: str) -> None:
    settings: dict[str, Any] = {"tenant": "acme", "project": "", "max_idle_ms": 0, "heartbeat_ms": 0}
    await pool.store.agents.place(POOL, name, "Echo", **settings, reply_to="", operation=f"op-{name}")


async def submit(pool: TinyPool, id: str, agent: str = "", **more: Any) -> None:
    lane, agent_type = ("-", "") if agent else (more.pop("lane", "normal"), "Echo")
    header = TaskHeader("", agent, agent_type, "acme", lane, 0, ",".join(f"{name}=1" for name in more))
    options = SubmitOptions(**more)
    await pool.store.tasks.submit(f"{POOL}/{id}", header, TaskEnvelope(msgspec.Raw(b"1")), options)
