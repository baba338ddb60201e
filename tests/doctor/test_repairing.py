"""Redis is spoilt, doctor names it and mends it; then nothing is wrong, nothing is lost, and the pool is at work."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from support.healthy import spawn, submit
from support.tiny_pool import MASTER, POOL, TinyPool
from support.wait import wait_until

from agentpool.doctor import examine, repair
from agentpool.doctor.remedies import Remedy, Untreated, remedies_for
from agentpool.doctor.survey import take_surveys
from agentpool.doctor.violations import violation
from agentpool.protocol.tasks import TaskEnvelope, TaskHeader
from agentpool.store.mending import PER_CALL

Spoil = Callable[[TinyPool, Any, Any], Awaitable[Any]]
TASKS = {f"{POOL}/{id}" for id in ("a1", "b1", "t1", "t2")}


async def _delayed(pool: TinyPool, redis: Any, keys: Any) -> None:
    await submit(pool, "later", delay=60_000)
    await redis.zrem(keys.due(POOL), f"start {POOL}/later")


async def _turn_of_nothing(pool: TinyPool, redis: Any, keys: Any) -> None:
    await redis.sadd(keys.lanes(POOL), "urgent")
    await redis.zadd(keys.turns(POOL, "urgent"), {"ghost": 1})


async def _two_outcomes_of_one(pool: TinyPool, redis: Any, keys: Any) -> None:
    await redis.set(keys.task(f"{POOL}/old"), '{"status":"succeeded"}')
    await redis.zadd(keys.due(POOL), {f"expire {POOL}/old": 9e15, f"promote {POOL}/old": 9e15})
    await redis.hset(keys.attempts(POOL), f"{POOL}/old", "1 0 0 0 0")
    await redis.zadd(keys.suspects(POOL), {f"{POOL}/old": 1})


async def _letters(pool: TinyPool, redis: Any, keys: Any) -> None:
    await redis.zadd(keys.dead(POOL), {f"{POOL}/nothing": 1})
    await redis.set(keys.task(f"{POOL}/old"), '{"status":"dead"}')
    await redis.hset(keys.letter(POOL, f"{POOL}/old"), "kind", "failed")


async def _mail_of_nobody(pool: TinyPool, redis: Any, keys: Any) -> None:
    await redis.delete(keys.agent(f"{POOL}/a"), keys.snapshot(POOL, "a"))
    await redis.srem(keys.worker_agents(POOL, "w1"), "a")
    await redis.srem(keys.tenant_agents(POOL, "acme"), "a")
    await pool.store.mending.workers(POOL, ["w1"])


SPOILS: dict[str, tuple[set[int], Spoil]] = {
    "a score": ({1}, lambda p, r, k: r.zadd(k.processes(POOL), {"w1": 2})),
    "a count": ({1}, lambda p, r, k: r.hset(k.process("w1"), "agent_count", 7)),
    "a worker out of its index": ({1}, lambda p, r, k: r.zrem(k.workers(POOL), "w1")),
    "a worker in a wrong index": ({1}, lambda p, r, k: r.zadd(k.draining(POOL), {"w1": 1})),
    "a name in the index": ({1}, lambda p, r, k: r.zadd(k.processes(POOL), {"ghost": 5})),
    "a set of nobody": ({1}, lambda p, r, k: r.sadd(k.worker_agents(POOL, "ghost"), "a")),
    "a pool that is not listed": ({1}, lambda p, r, k: r.srem(k.pools(), POOL)),
    "a list with too much": ({1}, lambda p, r, k: r.sadd(k.pools(), "ghost")),
    "a worker's record": ({1, 2, 6}, lambda p, r, k: r.delete(k.process("w1"))),
    "an agent in two places": ({2}, lambda p, r, k: r.zadd(k.pending(POOL), {"a": 1})),
    "an agent nowhere": ({2}, lambda p, r, k: r.zrem(k.pending(POOL), "c")),
    "an agent on two workers": ({1, 2}, lambda p, r, k: r.sadd(k.worker_agents(POOL, "w1"), "c")),
    "an agent's worker": ({2}, lambda p, r, k: r.hset(k.agent(f"{POOL}/a"), "process_id", "w9")),
    "an agent's status": ({2}, lambda p, r, k: r.hset(k.agent(f"{POOL}/a"), "status", "pending")),
    "a name that waits": ({2}, lambda p, r, k: r.zadd(k.pending(POOL), {"ghost": 1})),
    "an incarnation": ({7}, lambda p, r, k: r.hset(k.agent(f"{POOL}/a"), "incarnation", "")),
    "a task in a wrong mailbox": ({3}, lambda p, r, k: r.zadd(k.mailbox(POOL, "a"), {f"{POOL}/t2": 1})),
    "a mailbox": ({3}, lambda p, r, k: r.delete(k.mailbox(POOL, "a"))),
    "a lane": ({3}, lambda p, r, k: r.delete(k.lane(POOL, "normal", "acme"))),
    "the name of a lane": ({3}, lambda p, r, k: r.srem(k.lanes(POOL), "normal")),
    "a turn": ({3}, lambda p, r, k: r.zrem(k.turns(POOL, "normal"), "acme")),
    "a turn beside a hold": ({3}, lambda p, r, k: r.sadd(k.held(POOL), "acme")),
    "a turn of nothing": ({3}, _turn_of_nothing),
    "the count of what waits": ({3}, lambda p, r, k: r.hset(k.pool(POOL), "queued", 9)),
    "a task that waits in two ways": ({3}, lambda p, r, k: r.zadd(k.suspects(POOL), {f"{POOL}/t2": 1})),
    "a task that waits and runs": ({3}, lambda p, r, k: r.zadd(k.suspects(POOL), {f"{POOL}/t1": 1})),
    "a task that is not there": ({3}, lambda p, r, k: r.zadd(k.mailbox(POOL, "a"), {f"{POOL}/ghost": 1})),
    "a lost timer": ({3, 5}, _delayed),
    "mail of nobody": ({3}, _mail_of_nobody),
    "what is kept of the finished": ({4}, _two_outcomes_of_one),
    "dead letters": ({4}, _letters),
    "a tenant's agents": ({5}, lambda p, r, k: r.srem(k.tenant_agents(POOL, "acme"), "a")),
    "a tenant's tasks": ({5}, lambda p, r, k: r.sadd(k.tenant_tasks(POOL, "acme"), f"{POOL}/t2")),
    "a tenant's waits": ({5}, lambda p, r, k: r.sadd(k.tenant_waits(POOL, "acme"), f"{POOL}/t1")),
    "a lease that is forgotten": ({3, 5, 6}, lambda p, r, k: r.hdel(k.leases(POOL), f"{POOL}/t1")),
    "a lease that its worker lacks": ({1, 6}, lambda p, r, k: r.zrem(k.worker_tasks(POOL, "w1"), f"{POOL}/t1")),
    "a lease in the wrong set": ({1, 6}, lambda p, r, k: r.zadd(k.worker_runs(POOL, "w1"), {f"{POOL}/t1": 1})),
    "a lease of a stranger": ({6}, lambda p, r, k: r.hset(k.leases(POOL), f"{POOL}/t1", "w9 1 1 task x")),
    "a cancel of nothing": ({6}, lambda p, r, k: r.sadd(k.worker_cancels(POOL, "w1"), f"{POOL}/t2")),
    "an agent that works on nothing": ({6}, lambda p, r, k: r.hset(k.agent(f"{POOL}/b"), "task_id", "")),
    "a fence": ({7}, lambda p, r, k: r.hset(k.pool(POOL), "fence", 3)),
}


@pytest.mark.parametrize("name", SPOILS)
async def test_what_is_spoilt_is_mended(pool: TinyPool, name: str) -> None:
    numbers, spoil = SPOILS[name]
    await spoil(pool, pool.store.connection.redis, pool.store.keys)
    found = {fault.invariant for fault in await examine(pool.store)}
    assert found & numbers, found
    report = await repair(pool.store)
    assert report.violations == [], report
    assert report.left == []
    assert {mended.invariant for mended in report.mended} >= numbers & found
    assert all(mended.did for mended in report.mended)
    again = await repair(pool.store)
    assert (again.mended, again.violations) == ([], []), "there is nothing left to do"
    await everything_goes_on(pool, lost={f"{POOL}/a1"} if name == "mail of nobody" else set())


async def everything_goes_on(pool: TinyPool, lost: set[str]) -> None:
    """The worker dies, another comes: all that was accepted is done, who waits has a place, and nothing is wrong."""
    store = pool.store
    for worker in await store.workers.lost(POOL):
        await store.workers.reap(POOL, worker, proof="lost", authority=pool.token, reason="test")
    await store.workers.reap(POOL, "w1", proof="owner", authority=MASTER, reason="test")
    await pool.add_worker("w2", capacity=8)
    await store.agents.place_pending(POOL, pool.token)
    await spawn(pool, "new")
    await submit(pool, "n1", agent="new")

    async def done() -> bool:
        found = [await store.tasks.read(id) for id in (TASKS | {f"{POOL}/n1"}) - lost]
        return all(outcome is not None and outcome.status == "succeeded" for outcome in found)

    await wait_until(done)

    async def at_home() -> bool:
        agents = await store.agents.all(POOL)
        names = {agent.agent_id.partition("/")[2] for agent in agents}
        wanted = {"b", "c", "new"} if lost else {"a", "b", "c", "new"}
        return names == wanted and all((agent.status, agent.process_id) == ("idle", "w2") for agent in agents)

    await wait_until(at_home)
    assert await examine(store) == []


async def test_what_cannot_be_mended_is_left_with_the_reason(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.set(keys.task(f"{POOL}/odd"), "what is this")
    await redis.hset(keys.pool(POOL), "max_pending", 0)
    await redis.hset(keys.letter(POOL, f"{POOL}/t2"), "kind", "failed")
    await redis.zadd(keys.dead(POOL), {f"{POOL}/t2": 1})
    await redis.zadd(keys.workers(POOL), {"w1": 5})
    await redis.zadd(keys.processes(POOL), {"w1": 3})
    report = await repair(pool.store)
    assert [mended.subject for mended in report.mended] == ["w1"]
    reasons = {(left.invariant, left.subject): (left.why, left.next_step) for left in report.left}
    assert reasons.keys() == {(4, f"{POOL}/odd"), (4, f"{POOL}/t2"), (6, "w1")}
    assert all(why and next_step for why, next_step in reasons.values())
    assert {(fault.invariant, fault.subject) for fault in report.violations} == set(reasons)
    assert await redis.get(keys.task(f"{POOL}/odd")) == "what is this", "nothing that is not understood is touched"


async def test_the_queues_of_many_tenants_are_mended(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    for number in range(PER_CALL):
        header = TaskHeader("", "", "Echo", f"tenant-{number}", "normal")
        await pool.store.tasks.submit(f"{POOL}/q{number}", header, TaskEnvelope(msgspec.Raw(b"1")))
    before = await redis.hget(keys.pool(POOL), "queued")
    await redis.hset(keys.pool(POOL), "queued", 9)
    await redis.zrem(keys.turns(POOL, "normal"), "tenant-3", "tenant-99")
    await redis.zadd(keys.turns(POOL, "normal"), {"nobody": 1})
    report = await repair(pool.store)
    assert (report.left, report.violations) == ([], [])
    assert {mended.invariant for mended in report.mended} == {3}
    assert await redis.hget(keys.pool(POOL), "queued") == before


async def test_each_invariant_has_a_remedy_or_a_reason(pool: TinyPool) -> None:
    survey = (await take_surveys(pool.store))[POOL]
    for number in range(1, 10):
        found = remedies_for(survey, violation(number, f"{POOL}: tenant acme, a", "set of agents"))
        assert isinstance(found, Remedy | Untreated)
    for detail, word in (("process 7 runs, but is not registered", "kill 7"), ("its process 7 is gone", "start")):
        found = remedies_for(survey, violation(8, "w1", detail))
        assert isinstance(found, Untreated)
        assert word in found.next_step


async def test_a_pool_at_work_is_not_disturbed(pool: TinyPool) -> None:
    """Repairs that nobody needs change nothing."""
    store = pool.store
    survey = (await take_surveys(store))[POOL]
    await store.mending.workers(POOL, ["w1"])
    await store.mending.agents(POOL, ["a w1", "b w1", "c -"])
    await store.mending.tasks(POOL, sorted(TASKS))
    await store.mending.tenants(POOL, [f"acme tasks {POOL}/t1", f"acme tasks {POOL}/t2", "acme agents a"])
    await store.mending.pool(POOL, ["normal:acme"])
    await store.mending.pool(POOL, [])
    after = (await take_surveys(store))[POOL]
    for field in ("processes", "pending", "queues", "mailboxes", "leases", "tenant_tasks", "tenant_agents", "turns"):
        assert getattr(after, field) == getattr(survey, field), field
    assert await examine(store) == []
