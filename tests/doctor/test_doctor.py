"""For each invariant: Redis is spoilt, and doctor names it. And what is healthy is called healthy."""

import asyncio
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from redis.asyncio.client import Pipeline
from support.healthy import spawn, submit
from support.tiny_pool import MASTER, POOL, TinyPool, tiny_pool
from support.wait import wait_until

from agentpool.doctor import Violation, examine
from agentpool.doctor.checks import check_growth
from agentpool.doctor.processes import LocalWorker, check_processes, local_workers
from agentpool.doctor.survey import PAGE, Survey, take_surveys
from agentpool.protocol.tasks import TaskEnvelope, TaskHeader
from agentpool.store import Store
from agentpool.store.tasks import EndedTask

INSTALL = "abcdefghijklmnopqrstuv"


async def named(store: Store) -> set[tuple[int, str]]:
    return {(fault.invariant, fault.subject) for fault in await examine(store)}


def only(faults: list[Violation]) -> Violation:
    assert len(faults) == 1, faults
    return faults[0]


async def test_a_healthy_pool_is_clean(pool: TinyPool) -> None:
    assert await examine(pool.store) == []


async def test_an_empty_server_is_clean(redis_url: str) -> None:
    store = Store.open(redis_url)
    assert await examine(store) == []
    assert await store.connection.redis.dbsize() == 0, "doctor writes nothing"
    await store.close()


async def test_a_namespace_is_examined_alone(redis_url: str) -> None:
    store = Store.open(redis_url, namespace="a*b")
    await store.connection.redis.hset("agent:p/x", "status", "idle")
    assert await examine(store) == []
    await store.connection.redis.hset(store.keys.agent("p/x"), "status", "idle")
    assert (2, "p/x") in await named(store)
    await store.close()


async def test_no_reading_grows_with_what_is_finished(pool: TinyPool, monkeypatch: pytest.MonkeyPatch) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    sizes: list[int] = []
    execute = Pipeline.execute

    async def measured(self: Any, *words: Any, **more: Any) -> Any:
        sizes.append(len(self.command_stack))
        answers = await execute(self, *words, **more)
        sizes.extend(len(answer) for answer in answers if isinstance(answer, list | set | dict))
        return answers

    monkeypatch.setattr(Pipeline, "execute", measured)
    await examine(pool.store)
    before = max(sizes)
    ids = [f"{POOL}/old{number}" for number in range(4000)]
    await redis.mset({keys.task(id): '{"status":"succeeded"}' for id in ids})
    await redis.zadd(keys.dead(POOL), dict.fromkeys(ids[:2000], 1))
    for id in ids[:2000]:
        await redis.hset(keys.letter(POOL, id), "kind", "failed")
    sizes.clear()
    assert await examine(pool.store) == []
    assert before < max(sizes) <= 2 * PAGE
    assert len((await take_surveys(pool.store))[POOL].tasks) == 4, "only what is unfinished is kept"


async def test_a_pool_stays_clean_through_a_life(pool: TinyPool) -> None:
    store = pool.store
    second = await pool.add_worker("w2")
    await wait_until(lambda: _is_idle(store, "c"))
    await store.workers.drain(POOL, "w2", reason="test")
    assert await examine(store) == []
    record = await store.agents.get(f"{POOL}/c")
    await second.stop()
    await store.agents.release(POOL, "w2", "c", record.incarnation, "{}")
    assert await store.workers.retire(POOL, "w2", reason="test")
    assert await examine(store) == []
    await pool.lose(pool.workers[0])
    assert await examine(store) == []
    for name in ("a", "b", "c"):
        await store.agents.terminate(f"{POOL}/{name}")
    assert await examine(store) == []


async def _is_idle(store: Store, name: str) -> bool:
    return (await store.agents.get(f"{POOL}/{name}")).status == "idle"


async def test_a_busy_pool_gives_no_false_alarm(redis_url: str) -> None:
    async with tiny_pool(redis_url) as pool:
        for id in ("w1", "w2"):
            await pool.add_worker(id)
        loads = [asyncio.create_task(_load(pool, number)) for number in range(4)]
        try:
            for _ in range(5):
                assert await examine(pool.store) == []
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)


async def _load(pool: TinyPool, number: int) -> None:
    turn = 0
    while True:
        turn += 1
        await spawn(pool, f"x{number}-{turn}")
        await submit(pool, f"m{number}-{turn}", agent=f"x{number}-{turn}")
        await submit(pool, f"t{number}-{turn}")
        await asyncio.sleep(0.005)
        await pool.store.agents.terminate(f"{POOL}/x{number}-{turn}")


# -- 1 ----------------------------------------------------------------------------------------------------------


async def test_1_a_wrong_score(pool: TinyPool) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.processes(POOL), {"w1": 2})
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (1, "w1")
    assert fault.detail == "has 0 free slots, but the index says 2"


async def test_1_a_worker_that_drains_but_stands_in_the_index(pool: TinyPool) -> None:
    await pool.store.workers.drain(POOL, "w1", reason="test")
    await pool.store.connection.redis.zadd(pool.store.keys.processes(POOL), {"w1": 1})
    assert only(await examine(pool.store)).invariant == 1


async def test_1_a_worker_without_a_record(pool: TinyPool) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.processes(POOL), {"ghost": 5})
    await pool.store.connection.redis.sadd(pool.store.keys.worker_cancels(POOL, "spook"), f"{POOL}/t1")
    assert {(1, "ghost"), (1, "spook")} <= await named(pool.store)


async def test_1_a_wrong_count_in_the_record(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.process("w1"), "agent_count", 7)
    assert "agent_count is 7" in only(await examine(pool.store)).detail


async def test_1_a_worker_that_is_not_among_the_workers(pool: TinyPool) -> None:
    await pool.store.connection.redis.zrem(pool.store.keys.workers(POOL), "w1")
    assert "is not in `workers`" in only(await examine(pool.store)).detail


# -- 2 ----------------------------------------------------------------------------------------------------------


async def test_2_an_agent_in_two_places(pool: TinyPool) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.pending(POOL), {"a": 1})
    assert (2, f"{POOL}/a") in await named(pool.store)


async def test_2_an_agent_in_no_place(pool: TinyPool) -> None:
    await pool.store.connection.redis.zrem(pool.store.keys.pending(POOL), "c")
    assert "nowhere" in only(await examine(pool.store)).detail


@pytest.mark.parametrize(
    ("field", "value"), [("process_id", "w9"), ("process_id", ""), ("status", "pending"), ("status", "failed")]
)
async def test_2_an_agent_whose_record_says_otherwise(pool: TinyPool, field: str, value: str) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.agent(f"{POOL}/a"), field, value)
    assert (2, f"{POOL}/a") in await named(pool.store)


async def test_2_names_without_a_record(pool: TinyPool) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.pending(POOL), {"ghost": 1})
    await pool.store.connection.redis.sadd(pool.store.keys.worker_agents(POOL, "w1"), "spook")
    assert {(2, f"{POOL}/ghost"), (2, f"{POOL}/spook")} <= await named(pool.store)


async def test_2_an_agent_of_no_pool_that_is_known(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.agent("elsewhere/x"), "status", "idle")
    assert (2, "elsewhere/x") in await named(pool.store)


async def test_2_an_agent_on_a_worker_that_is_gone(pool: TinyPool) -> None:
    await pool.store.connection.redis.delete(pool.store.keys.process("w1"))
    assert {(2, f"{POOL}/a"), (2, f"{POOL}/b")} <= await named(pool.store)


# -- 3 and 4 ----------------------------------------------------------------------------------------------------


async def test_3_a_task_in_two_places(pool: TinyPool) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.mailbox(POOL, "a"), {f"{POOL}/t2": 1})
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (3, f"{POOL}/t2")


async def test_3_a_task_in_no_place(pool: TinyPool) -> None:
    await pool.store.connection.redis.delete(pool.store.keys.mailbox(POOL, "a"))
    assert "nowhere" in only(await examine(pool.store)).detail


@pytest.mark.parametrize("where", ["lane", "mailbox", "lease", "delayed", "suspects"])
async def test_3_a_place_names_a_task_that_is_not_there(pool: TinyPool, where: str) -> None:
    redis, keys, ghost = pool.store.connection.redis, pool.store.keys, f"{POOL}/ghost"
    match where:
        case "lane":
            await redis.zadd(keys.lane(POOL, "normal", "acme"), {ghost: 1})
        case "mailbox":
            await redis.zadd(keys.mailbox(POOL, "a"), {ghost: 1})
        case "lease":
            await redis.hset(keys.leases(POOL), ghost, "w1 1 1 1")
        case "delayed":
            await redis.zadd(keys.due(POOL), {f"start {ghost}": 1})
        case "suspects":
            await redis.zadd(keys.suspects(POOL), {ghost: 1})
    assert (3, ghost) in await named(pool.store)


async def test_3_a_lane_that_is_not_known(pool: TinyPool) -> None:
    await pool.store.connection.redis.delete(pool.store.keys.lanes(POOL))
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (3, f"{POOL}: lane normal:acme")


async def test_3_a_tenant_without_its_turn(pool: TinyPool) -> None:
    await pool.store.connection.redis.delete(pool.store.keys.turns(POOL, "normal"))
    assert "has no turn and is not held" in only(await examine(pool.store)).detail


async def test_3_a_tenant_that_is_held_and_has_a_turn(pool: TinyPool) -> None:
    await pool.store.connection.redis.sadd(pool.store.keys.held(POOL), "acme")
    assert only(await examine(pool.store)).detail == "its tenant is held, but has a turn"


@pytest.mark.parametrize(("lane", "tenant"), [("normal", "nobody"), ("urgent", "acme"), ("normal+gpu", "acme")])
async def test_3_a_turn_without_tasks(pool: TinyPool, lane: str, tenant: str) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.turns(POOL, lane), {tenant: 1})
    fault = only(await examine(pool.store))
    assert (fault.subject, fault.detail) == (f"{POOL}: lane {lane}:{tenant}", "has a turn, but holds no tasks")


async def test_3_a_task_in_the_lane_of_another(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.rename(keys.lane(POOL, "normal", "acme"), keys.lane(POOL, "normal", "other"))
    await redis.rename(keys.turns(POOL, "normal"), "old")
    await redis.zadd(keys.turns(POOL, "normal"), {"other": 1})
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (3, f"{POOL}/t2")


async def test_3_a_count_that_is_wrong(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.pool(POOL), "queued", 7)
    fault = only(await examine(pool.store))
    assert (fault.subject, fault.detail) == (POOL, "its queues hold 1 tasks, but it says 7")


@pytest.mark.parametrize("index", ["due", "suspects"])
async def test_3_a_task_that_waits_in_two_ways(pool: TinyPool, index: str) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    name = f"start {POOL}/t2" if index == "due" else f"{POOL}/t2"
    await redis.zadd(getattr(keys, index)(POOL), {name: 1})
    fault = only([fault for fault in await examine(pool.store) if fault.invariant == 3])
    assert fault.subject == f"{POOL}/t2"
    assert "in 2" in fault.detail


async def test_3_a_delayed_task_whose_timer_is_gone(pool: TinyPool) -> None:
    await submit(pool, "later", delay=60_000)
    assert await examine(pool.store) == []
    await pool.store.connection.redis.delete(pool.store.keys.due(POOL))
    assert await named(pool.store) == {(3, f"{POOL}/later"), (5, f"{POOL}: tenant acme, {POOL}/later")}


async def test_3_a_mailbox_without_an_agent(pool: TinyPool) -> None:
    await pool.store.connection.redis.rename(pool.store.keys.mailbox(POOL, "a"), pool.store.keys.mailbox(POOL, "ghost"))
    assert (3, f"{POOL}/ghost") in await named(pool.store)


@pytest.mark.parametrize("task", ["a1", "t1", "t2"])
async def test_4_a_finished_task_that_is_still_somewhere(pool: TinyPool, task: str) -> None:
    await pool.store.connection.redis.set(pool.store.keys.task(f"{POOL}/{task}"), '{"status":"succeeded"}')
    assert (4, f"{POOL}/{task}") in await named(pool.store)


@pytest.mark.parametrize("kind", ["expire", "promote"])
async def test_4_a_timer_of_a_task_that_is_finished(pool: TinyPool, kind: str) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.set(keys.task(f"{POOL}/old"), '{"status":"succeeded"}')
    await redis.zadd(keys.due(POOL), {f"{kind} {POOL}/old": 9e15, "tenant acme": 9e15})
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (4, f"{POOL}/old")


async def test_4_attempts_of_a_task_that_is_gone(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.attempts(POOL), f"{POOL}/old", "1 0 0 0 0")
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (4, f"{POOL}/old")


async def test_4_dead_letters(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    bury = EndedTask(f"{POOL}/t1", "", "dead", b'{"status":"dead"}')
    assert await pool.store.tasks.exchange(POOL, "w1", 2, room=-1, ended=[bury])
    assert await examine(pool.store) == []
    await redis.hset(keys.letter(POOL, f"{POOL}/t2"), "kind", "failed")
    faults = await examine(pool.store)
    assert {(fault.invariant, fault.subject) for fault in faults} == {(4, f"{POOL}/t2")}
    assert {fault.detail for fault in faults} == {
        "is a dead letter, but unfinished",
        "as a dead letter: is in no index",
    }
    await redis.delete(keys.letter(POOL, f"{POOL}/t2"), keys.letter(POOL, f"{POOL}/t1"))
    fault = only(await examine(pool.store))
    assert (fault.subject, fault.detail) == (
        f"{POOL}/t1",
        "as a dead letter: stands among the dead letters, but there is none",
    )
    await redis.delete(keys.dead(POOL), keys.task(f"{POOL}/t1"))
    assert await examine(pool.store) == []


async def test_4_what_is_no_task_at_all(pool: TinyPool) -> None:
    await pool.store.connection.redis.set(pool.store.keys.task(f"{POOL}/odd"), "hello")
    assert only(await examine(pool.store)).detail == "is neither a task nor an outcome"


# -- 5 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["agents", "tasks"])
async def test_5_a_tenant_set_with_one_too_many_or_too_few(pool: TinyPool, kind: str) -> None:
    keys = pool.store.keys
    key = keys.tenant_agents(POOL, "acme") if kind == "agents" else keys.tenant_tasks(POOL, "acme")
    await pool.store.connection.redis.sadd(key, "ghost")
    faults = [fault for fault in await examine(pool.store) if fault.invariant == 5]
    assert [fault.subject for fault in faults] == [f"{POOL}: tenant acme, ghost"]
    assert f"set of {kind} names it" in faults[0].detail
    await pool.store.connection.redis.delete(key)
    faults = await examine(pool.store)
    assert {fault.invariant for fault in faults} == {5}
    assert all("lacks" in fault.detail for fault in faults)


async def test_5_a_task_that_waits_in_one_set_only(pool: TinyPool) -> None:
    redis, keys, task = pool.store.connection.redis, pool.store.keys, f"{POOL}/t1"
    await submit(pool, "child", lane="child", parent=task)
    assert await examine(pool.store) == []
    await redis.srem(keys.worker_waits(POOL, "w1"), task)
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (5, f"{POOL}: tenant acme, {task}")
    assert "set of waits names it" in fault.detail
    await redis.sadd(keys.worker_waits(POOL, "w1"), task)
    await redis.delete(keys.tenant_waits(POOL, "acme"))
    assert "set of waits lacks it" in only(await examine(pool.store)).detail


async def test_5_an_agent_that_changed_its_tenant(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.agent(f"{POOL}/a"), "tenant", "other")
    tenants = {fault.subject.rpartition(",")[0] for fault in await examine(pool.store)}
    assert tenants == {f"{POOL}: tenant {tenant}" for tenant in ("acme", "other")}


async def test_5_a_delayed_task_that_its_tenant_does_not_know(pool: TinyPool) -> None:
    await submit(pool, "later", delay=60_000)
    await pool.store.connection.redis.delete(pool.store.keys.tenant_delayed(POOL, "acme"))
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (5, f"{POOL}: tenant acme, {POOL}/later")
    assert "set of delayed lacks it" in fault.detail


# -- 6 ----------------------------------------------------------------------------------------------------------


async def test_6_a_lease_that_its_worker_does_not_have(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.zrem(keys.worker_runs(POOL, "w1"), f"{POOL}/b1")
    assert only(await examine(pool.store)) == Violation(
        6, "leases and beats", f"{POOL}/b1", "is leased by w1, but is in 0 of its sets"
    )


async def test_6_a_lease_that_is_forgotten(pool: TinyPool) -> None:
    await pool.store.connection.redis.hdel(pool.store.keys.leases(POOL), f"{POOL}/b1")
    assert {(6, f"{POOL}/b1"), (6, f"{POOL}/b"), (3, f"{POOL}/b1")} <= await named(pool.store)


async def test_6_a_lease_of_a_worker_that_is_not_there(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.leases(POOL), f"{POOL}/t1", "ghost 1 1 0")
    assert (6, f"{POOL}/t1") in await named(pool.store)


@pytest.mark.parametrize("words", ["w1", "w1 x 1 1", "w1 1 1", "w1 1 -1 0"])
async def test_6_a_lease_that_cannot_be_read(pool: TinyPool, words: str) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.leases(POOL), f"{POOL}/t1", words)
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (6, f"{POOL}/t1")
    assert repr(words) in fault.detail


@pytest.mark.parametrize("kind", ["cancels", "waits"])
async def test_6_a_set_of_a_worker_names_what_it_does_not_run(pool: TinyPool, kind: str) -> None:
    key = getattr(pool.store.keys, f"worker_{kind}")(POOL, "w1")
    await pool.store.connection.redis.sadd(key, f"{POOL}/t2")
    fault = only(await examine(pool.store))
    assert (fault.invariant, fault.subject) == (6, f"{POOL}/t2")
    assert "there is no such lease" in fault.detail


async def test_6_a_lease_in_the_wrong_set(pool: TinyPool) -> None:
    redis, keys, id = pool.store.connection.redis, pool.store.keys, f"{POOL}/b1"
    await redis.zrem(keys.worker_runs(POOL, "w1"), id)
    await redis.zadd(keys.worker_tasks(POOL, "w1"), {id: 1})
    assert (6, id) in await named(pool.store)


async def test_6_an_agent_that_works_on_nothing(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.agent(f"{POOL}/b"), "task_id", "")
    assert only(await examine(pool.store)).subject == f"{POOL}/b"


async def test_6_a_worker_that_is_silent_but_not_given_up(pool: TinyPool) -> None:
    await pool.store.connection.redis.zadd(pool.store.keys.workers(POOL), {"w1": 1000})
    assert "was not given up" in only(await examine(pool.store)).detail


async def test_6_a_worker_that_was_fenced_but_never_emptied(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.hset(keys.process("w1"), "status", "lost")
    await redis.zrem(keys.workers(POOL), "w1")
    await redis.zrem(keys.processes(POOL), "w1")
    await redis.zadd(keys.lost(POOL), {"w1": 1000})
    assert "is not emptied" in only(await examine(pool.store)).detail


# -- 7 ----------------------------------------------------------------------------------------------------------


async def test_7_a_lock_with_a_fence_that_was_never_given(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.set(keys.leader_lock(POOL), f"99999999999999 {MASTER}")
    await redis.set(keys.placement_lock(POOL), f"nonsense {MASTER}")
    faults = await examine(pool.store)
    assert [fault.invariant for fault in faults] == [7, 7]


async def test_7_a_placed_agent_without_incarnation(pool: TinyPool) -> None:
    await pool.store.connection.redis.hset(pool.store.keys.agent(f"{POOL}/a"), "incarnation", 0)
    assert only(await examine(pool.store)).invariant == 7


async def test_7_what_grows_went_back(pool: TinyPool) -> None:
    redis, keys = pool.store.connection.redis, pool.store.keys
    before = await survey(pool)
    await redis.hset(keys.agent(f"{POOL}/a"), "incarnation", 0)
    await redis.hset(keys.pool(POOL), "fence", 1)
    await redis.hset(keys.process("w1"), "version", 0)
    assert {fault.subject for fault in check_growth(before, await survey(pool))} == {f"{POOL}/a", POOL, "w1"}


async def survey(pool: TinyPool) -> Survey:
    return (await take_surveys(pool.store))[POOL]


# -- 8 ----------------------------------------------------------------------------------------------------------


def title(worker: str, install: str = INSTALL) -> subprocess.Popen[bytes]:
    """Start a process that calls itself a worker."""
    code = f"import setproctitle,time; setproctitle.setproctitle('agentpool-worker {POOL} {worker} @{install[:8]}')"
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )


async def test_8_a_process_that_is_not_registered(pool: TinyPool, monkeypatch: pytest.MonkeyPatch) -> None:
    await pool.store.connection.redis.set(pool.store.keys.install(), INSTALL)
    process, other = title("ghost"), title("ghost", "another-install")
    try:
        for each in (process, other):
            assert each.stdout
            each.stdout.readline()
        assert [worker.pid for worker in local_workers(INSTALL)] == [process.pid]
        assert await examine(pool.store) == [], "it has some time to register"
        monkeypatch.setattr("agentpool.doctor.processes.GRACE_S", 0)
        assert only(await examine(pool.store)).subject == "ghost"
        assert await examine(pool.store, local=False) == []
    finally:
        for each in (process, other):
            each.kill()
            each.communicate()


async def test_8_a_registered_worker_without_a_process(redis_url: str) -> None:
    from agentpool.doctor.processes import _boot_id, _pid_ns, _stat

    async with tiny_pool(redis_url) as pool:
        await pool.store.connection.redis.set(pool.store.keys.install(), INSTALL)
        here: dict[str, object] = {"boot_id": _boot_id(), "pid_ns": _pid_ns(), "pid": 1}
        start = int(_stat(1)[19])
        await pool.add_worker("w1", works=False, **here, start_time=start)
        assert await examine(pool.store) == []
        await pool.add_worker("w2", works=False, **here, start_time=start + 1)
        await pool.add_worker("w3", works=False, **{**here, "boot_id": "another boot"}, start_time=start + 1)
        assert only(await examine(pool.store)).subject == "w2"


def test_8_a_young_process_may_be_about_to_register() -> None:
    young, old = (LocalWorker(1, POOL, f"w{age}", age=age) for age in (1.0, 60.0))
    assert [fault.subject for fault in check_processes([], [young, old])] == ["w60.0"]


# -- 9 ----------------------------------------------------------------------------------------------------------


async def test_9_queues_over_their_bounds(pool: TinyPool) -> None:
    await spawn(pool, "d")
    for id in ("a2", "a3"):
        await submit(pool, id, agent="a")
    many = [(f"{POOL}/q{n}", TaskEnvelope(msgspec.Raw(b"1"))) for n in range(60)]
    await pool.store.tasks.submit_many(many, TaskHeader("", "", "Echo", "acme"))
    assert await examine(pool.store) == []
    redis, keys = pool.store.connection.redis, pool.store.keys
    await redis.hset(keys.pool(POOL), mapping={"max_pending": 1, "max_queued": 1, "max_queued_pool": 2})
    assert [fault.subject.partition(": ")[2] for fault in await examine(pool.store)] == [
        "agents that wait", "mailbox of a", "tasks of acme", "tasks of all tenants",
    ]  # fmt: skip
    await redis.hset(keys.limits(POOL), "acme", "queued=100")
    assert "tasks of acme" not in {fault.subject.partition(": ")[2] for fault in await examine(pool.store)}


async def test_9_what_comes_back_is_not_counted(pool: TinyPool) -> None:
    for n in range(3):
        await submit(pool, f"later{n}", delay=1)
        await submit(pool, f"child{n}", lane="child", parent=f"{POOL}/t1")
    await asyncio.sleep(0.01)
    await pool.store.tasks.fire_timers(POOL)
    await pool.lose(pool.workers[0])
    await pool.store.connection.redis.hset(pool.store.keys.pool(POOL), mapping={"max_queued": 2, "max_queued_pool": 2})
    assert await examine(pool.store) == []
