"""Put pools, workers, agents and tasks into Redis (`seed_*`), and read back what scripts made of them (`read_*`).

Everything goes through the doors of the store, so a seed is as the product would have made it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec

from agentpool.protocol.codec import new_id
from agentpool.protocol.commands import Command, Reply, decode_command, decode_reply
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import Outcome, TaskEnvelope, TaskError, TaskHeader
from agentpool.store import Store
from agentpool.store.tasks import EndedTask, Exchange, SubmitOptions

__all__ = [
    "LONG_MS",
    "MASTER",
    "SETTINGS",
    "at_once",
    "ended",
    "exchange",
    "failure",
    "finish",
    "header",
    "ids",
    "listening",
    "new_store",
    "outcome",
    "read_agent",
    "read_commands",
    "read_events",
    "read_free",
    "read_hash",
    "read_history",
    "read_outcome",
    "read_replies",
    "read_texts",
    "read_worker",
    "seed_agent",
    "seed_host",
    "seed_leader",
    "seed_lease",
    "seed_order",
    "seed_pool",
    "seed_running_agent",
    "seed_task",
    "seed_worker",
]

MASTER = "m1"
LONG_MS = 60_000
SETTINGS: dict[str, object] = {
    "role_type": "developer",
    "min_workers": 0,
    "max_workers": 100,
    "agents_per_worker": 10,
    "placement": "least_loaded",
    "max_input_bytes": 10_000,
    "max_queued": 1000,
    "max_pending": 1000,
    "heartbeat_timeout_ms": 10_000,
    "result_ttl_ms": LONG_MS,
    "key_ttl_ms": LONG_MS,
    "max_queued_pool": 0,
    "max_dead": 100,
    "tenant_limits": "",
    "batch_max_wait_ms": LONG_MS,
    "audit": 1,
}


@asynccontextmanager
async def new_store(url: str, **options: Any) -> AsyncIterator[Store]:
    """Open a store and close it."""
    store = Store.open(url, **options)
    try:
        yield store
    finally:
        await store.close()


# -- seeds ------------------------------------------------------------------------------------------------------


async def seed_leader(store: Store, pool: str = "p", master: str = MASTER, *, lease_ms: int = LONG_MS) -> str:
    """Let a master lead, with no hold on reaping; returns its token."""
    lead = await store.locks.lead(pool, master, lease_ms=lease_ms, gap_ms=LONG_MS, hold_ms=0)
    assert lead.token, f"{lead.leader} leads"
    return lead.token


async def seed_pool(store: Store, pool: str = "p", *, types: Iterable[str] = ("R",), **settings: object) -> str:
    """Apply a pool as its leader; returns the leader's token."""
    token = await seed_leader(store, pool)
    infos = [TypeInfo(name=name, module="tests") for name in types]
    assert await store.pools.apply(pool, token, infos, SETTINGS | settings)
    return token


async def seed_order(store: Store, worker: str, pool: str = "p", *, master: str = MASTER) -> None:
    """Order a worker; its secret is `secret of <worker>`."""
    leader = await seed_leader(store, pool)
    async with store.locks.placement(pool, MASTER) as placement:
        assert placement
        orders = [(worker, f"secret of {worker}")]
        ordered = await store.workers.reserve(
            pool, orders, leader=leader, placement=placement, master=master, max_starting=1000
        )
    assert ordered == [worker]


async def seed_worker(
    store: Store, worker: str = "w1", pool: str = "p", *, capacity: int = 10, master: str = MASTER, labels: str = ""
) -> str:
    """Order and register a worker; returns its id."""
    await seed_order(store, worker, pool, master=master)
    answer = await store.connection.call(
        "register_worker", pool, worker, f"secret of {worker}", capacity, "pid", 1, "labels", labels
    )
    assert answer[0] == "ok"
    return worker


async def seed_host(
    store: Store, host: str = "h1", labels: Iterable[str] = (), pool: str = "p", *, session: str = "s", **fields: object
) -> None:
    """Let a master report that it lives, under the name of its host."""
    await store.hosts.report(pool, host, session, host_id=host, labels=labels, fields={"host": host, **fields})


async def seed_agent(
    store: Store,
    name: str = "a1",
    pool: str = "p",
    *,
    agent_type: str = "R",
    tenant: str = "default",
    operation: str = "",
    reply_to: str = "client:c:replies",
) -> str | None:
    """Spawn an agent; returns its worker, or None when it waits."""
    return await store.agents.place(
        pool,
        name,
        agent_type,
        tenant=tenant,
        project="",
        max_idle_ms=0,
        heartbeat_ms=0,
        reply_to=reply_to,
        operation=operation or new_id(),
    )


async def seed_running_agent(store: Store, name: str = "a1", pool: str = "p", **more: Any) -> str:
    """Spawn an agent and confirm that it runs; returns its worker."""
    worker = await seed_agent(store, name, pool, **more)
    assert worker
    record = await store.agents.get(f"{pool}/{name}")
    assert await store.agents.confirm(pool, worker, name, record.incarnation) is not None
    return worker


async def incarnation(store: Store, name: str = "a1", pool: str = "p") -> int:
    """The incarnation of an agent as it is now, 0 when it has ended: each is a time, so that none is given twice."""
    return int(await store.connection.redis.hget(store.keys.agent(f"{pool}/{name}"), "incarnation") or 0)


def header(
    agent: str = "",
    tenant: str = "default",
    *,
    lane: str = "normal",
    later_us: int = 0,
    options: str = "",
    agent_type: str = "R",
    reply_to: str = "client:c:replies",
) -> TaskHeader:
    """The header of a task for an agent, or for any of a type."""
    lane, agent_type = ("-", "") if agent else (lane, agent_type)
    return TaskHeader(reply_to, agent, agent_type, tenant, lane, later_us, options)


async def seed_task(
    store: Store,
    id: str = "t1",
    pool: str = "p",
    *,
    agent: str = "",
    tenant: str = "default",
    input: object = None,
    lane: str = "normal",
    later_us: int = 0,
    digest: str = "",
    **options: Any,
) -> str:
    """Submit a task for an agent, or for any of type R; returns its id, or that of the one that has its key.

    `digest` is that of the input, for a key.
    """
    words = {"expires": "1" if "expires" in options else "", "batch": "1" if "batch" in options else ""}
    words |= {name: options.get(name, "") for name in ("key", "parent")}
    text = ",".join(f"{name}={value}" for name, value in words.items() if value)
    envelope = TaskEnvelope(msgspec.Raw(msgspec.json.encode(input)))
    head = header(agent, tenant, lane=lane, later_us=later_us, options=text)
    return await store.tasks.submit(f"{pool}/{id}", head, envelope, SubmitOptions(input=digest, **options))


def ended(
    id: str = "p/t1",
    agent: str = "",
    verdict: str = "done",
    *,
    result: Outcome | None = None,
    delay_ms: int = 0,
    run_ms: float = 1.5,
    tokens: int = 0,
) -> EndedTask:
    """What a worker says of a task that it had."""
    what = msgspec.json.encode(result or (outcome() if verdict == "done" else failure()))
    return EndedTask(id, agent, verdict, what, delay_ms, run_ms, tokens)


_numbers = count(1000)


async def exchange(
    store: Store,
    worker: str = "w1",
    number: int = 0,
    *,
    room: int = -1,
    prefetch: int = 0,
    ended: Sequence[EndedTask] = (),
    names: Sequence[str] = (),
    pool: str = "p",
) -> Exchange:
    """Exchange as a worker that is not given up; without a number, with the next one."""
    found = await store.tasks.exchange(
        pool, worker, number or next(_numbers), room=room, prefetch=prefetch, ended=ended, names=names
    )
    assert found is not None, f"{worker} was given up"
    return found


def ids(found: Exchange) -> list[str]:
    """The ids of the tasks that were taken."""
    return [task.id for task in found.tasks]


async def seed_lease(store: Store, id: str = "t1", worker: str = "w1", *, agent: str = "", **more: Any) -> str:
    """Submit a task and let a worker take it, and nothing else; returns its id."""
    task = await seed_task(store, id, agent=agent, **more)
    found = await exchange(store, worker, room=-1 if agent else 1, names=[agent] if agent else [])
    assert ids(found) == [task]
    return task


async def finish(store: Store, id: str = "p/t1", agent: str = "", worker: str = "w1", **more: Any) -> Exchange:
    """Hand in one task, and take nothing."""
    return await exchange(store, worker, ended=[ended(id, agent, **more)])


def outcome(worker: str = "w1", result: object = None) -> Outcome:
    """A successful outcome."""
    return Outcome(
        status=TaskStatus.SUCCEEDED, process_id=worker, result=msgspec.Raw(msgspec.json.encode(result)), duration_ms=1.5
    )


def failure(worker: str = "w1", message: str = "boom", status: str = "") -> Outcome:
    """An outcome of a run that raised."""
    return Outcome(
        status=TaskStatus(status or "failed"), process_id=worker, error=TaskError(type="ValueError", message=message)
    )


# -- reads ------------------------------------------------------------------------------------------------------


async def read_hash(store: Store, key: str) -> dict[str, str]:
    """Return a hash as text."""
    result: dict[str, str] = await store.connection.redis.hgetall(key)
    return result


async def read_agent(store: Store, name: str = "a1", pool: str = "p") -> dict[str, str]:
    """Return an agent's hash; empty when it has none."""
    return await read_hash(store, store.keys.agent(f"{pool}/{name}"))


async def read_worker(store: Store, worker: str = "w1") -> dict[str, str]:
    """Return a worker's hash; empty when it has none."""
    return await read_hash(store, store.keys.process(worker))


async def read_free(store: Store, pool: str = "p") -> dict[str, int]:
    """Return the index of free slots."""
    rows = await store.connection.redis.zrange(store.keys.processes(pool), 0, -1, withscores=True)
    return {worker: int(free) for worker, free in rows}


async def read_events(store: Store, pool: str = "p") -> list[str]:
    """Return the names of all events so far."""
    return [str(event.type) for event in await store.events.read(pool, 10_000)]


async def read_history(store: Store, pool: str = "p") -> list[dict[str, str]]:
    """Return the records of what ended."""
    return [fields for _, fields in await store.connection.redis.xrange(store.keys.history(pool))]


async def read_outcome(store: Store, task_id: str = "p/t1") -> str:
    """Return the status of a task's outcome; empty while there is none."""
    found = await store.tasks.read(task_id)
    return str(found.status) if found else ""


@asynccontextmanager
async def listening(store: Store, *channels: str) -> AsyncIterator[Any]:
    """Subscribe for the block; hand what it yields to `read_commands` or `read_replies`."""
    async with store.connection.redis.pubsub() as pubsub:
        await pubsub.subscribe(*channels)
        for _ in channels:
            await pubsub.get_message(timeout=5)
        yield pubsub


async def read_texts(pubsub: Any) -> list[str]:
    """Return what came so far on the channels of `listening`, in order."""
    texts = []
    # A published message is on its way before the script's answer is, so what is not here at once never came.
    while (message := await pubsub.get_message(timeout=0.05)) is not None:
        texts.append(message["data"])
    return texts


async def read_commands(pubsub: Any) -> list[Command]:
    """Return the commands that came."""
    return [decode_command(text) for text in await read_texts(pubsub)]


async def read_replies(pubsub: Any) -> list[Reply]:
    """Return the replies that came."""
    return [decode_reply(text) for text in await read_texts(pubsub)]


# -- races ------------------------------------------------------------------------------------------------------


async def at_once(callers: int, call: Any) -> list[Any]:
    """Return the results of `call(i)` for so many callers at once; errors are returned as values."""
    return await asyncio.gather(*(call(i) for i in range(callers)), return_exceptions=True)
