"""A lost answer looks like a lost request: whatever door it happens to, its repeat changes nothing more.

A life is lived twice, once through a door that loses the answer to each call of a script. After each step both have
led to the same state, and the invariants hold.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import redis
from msgspec.structs import replace
from support.dropping import dropping
from support.invariants import take_picture, violations
from support.seeds import (
    LONG_MS,
    MASTER,
    SETTINGS,
    ended,
    exchange,
    failure,
    finish,
    header,
    incarnation,
    new_store,
    seed_agent,
    seed_host,
    seed_leader,
    seed_lease,
    seed_order,
    seed_pool,
    seed_task,
    seed_worker,
)
from support.server import flush

from agentpool.protocol.records import DesiredAgent, TypeInfo
from agentpool.protocol.states import AgentStatus
from agentpool.protocol.tasks import TaskEnvelope, encode_task
from agentpool.store import Store
from agentpool.store.scripts import script

LUA = Path(__file__).parents[2] / "agentpool" / "store" / "lua"
# What a repeat may change: how often the worker was told, how fast the pool is, when it was last told.
PASSING = {"version", "rate", "rate_since", "rate_count", "room_wanted_at", "claim_number"}

Step = Callable[[Store], Awaitable[Any]]


async def _spawn_some(store: Store) -> None:
    for name in ("a1", "a2", "a3"):
        await seed_agent(store, name, operation=f"op-{name}")
        await store.agents.confirm("p", "w1", name, await incarnation(store, name))


async def _fail(store: Store, *, failures: int, final: bool) -> None:
    number = await incarnation(store, "a3")
    await store.agents.fail("p", "w1", "a3", number, failures=failures, error="no", final=final)


async def _confirm(store: Store) -> None:
    await store.agents.confirm("p", "w2", "a1", await incarnation(store))


async def _release(store: Store) -> None:
    await store.agents.release("p", "w2", "a1", await incarnation(store), "{}")


async def _restore(store: Store) -> None:
    """What the server lost: an agent, and a task that runs; `p/r2` is leased to the worker, which has not got it."""
    here = DesiredAgent.of(await store.agents.get("p/a1"))
    lost = DesiredAgent(agent_id="p/a9", agent_type="R", incarnation=5, status=AgentStatus.IDLE)
    await store.workers.restore(
        "p", "w2", {"capacity": 10}, [replace(here, status=AgentStatus.IDLE), lost], drains=False
    )
    record = encode_task(header(), TaskEnvelope(msgspec.Raw(b"1")))
    await store.tasks.restore("p", "w2", {"p/r1": record, "p/r2": b""})


async def _apply(store: Store) -> None:
    token = await seed_leader(store)
    await store.pools.apply("p", token, [TypeInfo(name="R", module="x")], SETTINGS | {"=acme": "running=5"})
    await store.pools.update("p", token, "restarts", "")


async def _order_and_start(store: Store) -> None:
    await seed_order(store, "w2")
    await store.workers.start("p", "w2", "secret of w2", {"pid": 2})
    await store.connection.call("register_worker", "p", "w2", "secret of w2", 4, "pid", 2)


async def _timers(store: Store) -> None:
    await seed_task(store, "soon", delay=1)
    await seed_task(store, "gone", expires=1)
    await seed_task(store, "patient", lane="batch", batch=True)
    await asyncio.sleep(0.01)
    await store.tasks.fire_timers("p")


async def _nested(store: Store) -> None:
    parent = await seed_lease(store, "parent", "w2")
    child = await seed_lease(store, "child", "w2", lane="child", parent=parent)
    await exchange(store, "w2", ended=[ended(child), ended(parent)])


async def _lock(store: Store) -> None:
    token = await store.locks.take("p", "placement", "someone", lease_ms=LONG_MS)
    assert token
    await store.locks.release("p", "placement", token)


async def _place_pending(store: Store) -> None:
    token = await seed_leader(store)
    await store.agents.place_pending("p", token)


async def _mend(store: Store) -> None:
    """A little of everything is spoilt, and mended."""
    redis, keys, mending = store.connection.redis, store.keys, store.mending
    await redis.zadd(keys.processes("p"), {"w1": 77})
    await mending.workers("p", ["w1"])
    await redis.srem(keys.worker_agents("p", "w1"), "a3")
    await mending.agents("p", ["a1 w1", "a3"])
    await store.agents.confirm("p", "w1", "a3", await incarnation(store, "a3"))
    await redis.zrem(keys.mailbox("p", "a1"), "p/m1")
    await mending.tasks("p", ["p/t1", "p/m1"])
    await redis.srem(keys.tenant_agents("p", "default"), "a1")
    await mending.tenants("p", ["default agents a1"])
    await redis.hset(keys.pool("p"), "queued", 50)
    await mending.pool("p", ["normal:acme"])


LIFE: dict[str, Step] = {
    "apply": _apply,
    "worker": lambda store: seed_worker(store, "w1", capacity=6),
    "order": _order_and_start,
    "spawn": _spawn_some,
    "beat": lambda store: store.connection.call("beat_worker", "p", "w1", 1, "", 0, "", 0, 0),
    "beat agents": lambda store: store.agents.beat("p", "w1", ["a1"]),
    "look": lambda store: store.workers.view("p", "w1"),
    "observe": lambda store: store.pools.observe("p"),
    "scale": lambda store: store.pools.scale("p", 2),
    "lock": _lock,
    "limit": lambda store: store.tenants.limit("p", "acme", {"requests_per_minute": 50, "tokens_per_minute": 1000}),
    "submit": lambda store: seed_task(store, "t1", tenant="acme", key="k", digest="d", expires=LONG_MS),
    "submit mail": lambda store: seed_task(store, "m1", agent="a1"),
    "mend": _mend,
    "follow": lambda store: store.tasks.follow("p/t1"),
    "claim": lambda store: exchange(store, "w1", room=2, names=["a1"]),
    "report": lambda store: store.tasks.report("p", "w1", [("p/t1", b"1")]),
    "retry": lambda store: exchange(
        store, "w1", room=2, ended=[ended("p/t1", verdict="retry", tokens=7), ended("p/m1", "a1", tokens=3)]
    ),
    "retry later": lambda store: exchange(
        store, "w1", ended=[ended("p/t1", verdict="retry", delay_ms=LONG_MS, tokens=7)]
    ),
    "cancel": lambda store: store.tasks.cancel("p/t1"),
    "bury": lambda store: seed_lease(store, "d1", "w2"),
    "buried": lambda store: finish(store, "p/d1", worker="w2", verdict="dead", result=failure(status="dead")),
    "replay": lambda store: store.letters.replay("p/d1", "p/d2"),
    "bury again": lambda store: exchange(store, "w2", room=1),
    "buried again": lambda store: exchange(
        store, "w2", ended=[ended("p/d2", verdict="dead", result=failure(status="dead"))]
    ),
    "purge": lambda store: store.letters.purge(["p/d2"]),
    "nested": _nested,
    "timers": _timers,
    "take": lambda store: exchange(store, "w2", room=1),
    "cancel what runs": lambda store: store.tasks.cancel("p/soon"),
    "fail": lambda store: _fail(store, failures=1, final=False),
    "fail for good": lambda store: _fail(store, failures=9, final=True),
    "terminate": lambda store: store.agents.terminate("p/a2"),
    "mail": lambda store: seed_lease(store, "m2", "w1", agent="a1"),
    "crash": lambda store: store.workers.reap(
        "p", "w1", proof="owner", authority=MASTER, reason="killed", blame={"p/m2": "suspect"}
    ),
    "confirm": _confirm,
    "restore": _restore,
    "hand in what was restored": lambda store: exchange(store, "w2", ended=[ended("p/r1")]),
    "end what was restored": lambda store: store.agents.terminate("p/a9"),
    "drain": lambda store: store.workers.drain("p", "w2", reason="test"),
    "hand in the last": lambda store: exchange(store, "w2", ended=[ended(task) for task in ("p/soon", "p/patient")]),
    "release": _release,
    "retire": lambda store: store.workers.retire("p", "w2", reason="test"),
    "place pending": _place_pending,
    "report a host": lambda store: seed_host(store),
    "take an order": lambda store: _take_order(store),
    "demand": lambda store: store.pools.demand("p"),
    "forget a host": lambda store: store.hosts.forget("p", "h1"),
    "resign": lambda store: _resign(store),
}


async def _take_order(store: Store) -> None:
    await seed_order(store, "w3")
    assert await store.hosts.take_order("p", "w3", MASTER, "another secret") == "ok"


async def _resign(store: Store) -> None:
    token = await seed_leader(store)
    await store.locks.release("p", "leader", token)


def state(client: Any) -> dict[str, Any]:
    """Everything that stands in Redis, without times; of streams, what was said, once."""
    found = {}
    for key in client.keys("*"):
        kind = client.type(key)
        if kind == "hash":
            fields = {name: text for name, text in client.hgetall(key).items() if name not in PASSING}
            window = key.endswith((":tokens", ":requests"))
            found[key] = sum(map(int, fields.values())) if window else fields
        elif kind == "zset":
            found[key] = dict(client.zrange(key, 0, -1, withscores=True))
        elif kind == "set":
            found[key] = sorted(client.smembers(key))
        elif kind == "stream":
            rows = (fields for _, fields in client.xrange(key))
            found[key] = sorted({repr(_timeless({**row, **dict.fromkeys(PASSING, "")})) for row in rows})
        else:
            found[key] = client.get(key)
    return {key: _timeless(value) for key, value in found.items()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items()}
    if isinstance(value, float):
        return "time" if value > 1e11 else round(value, 3)
    return re.sub(r"\d{12,}(\.\d+)?", "time", value) if isinstance(value, str) else value


async def live(store: Store, client: Any, states: list[dict[str, Any]]) -> None:
    await seed_pool(store)
    for name, step in LIFE.items():
        await step(store)
        assert violations(take_picture(client)) == [], name
        states.append(state(client))


async def test_a_lost_answer_changes_nothing(redis_url: str, tmp_path: Path) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    plain: list[dict[str, Any]] = []
    lossy: list[dict[str, Any]] = []
    async with new_store(redis_url) as store:
        await live(store, client, plain)
    flush(redis_url)
    async with dropping(redis_url, tmp_path / "door.sock") as (dropper, url), new_store(url) as store:
        await live(store, client, lossy)
    for name, expected, found in zip(LIFE, plain, lossy, strict=True):
        for key in sorted(expected.keys() | found.keys()):
            assert found.get(key) == expected.get(key), f"after {name}: {key}"
    everything = {path.stem: script(path.stem).function for path in LUA.glob("*.lua")}
    assert {name for name, function in everything.items() if function not in dropper.dropped} == set()
    client.close()
