"""limit_tenant, and how limits hold what waits: fifty workers race at each, and never go over it by one."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.seeds import (
    LONG_MS,
    at_once,
    ended,
    exchange,
    finish,
    ids,
    listening,
    read_commands,
    read_hash,
    seed_agent,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import AgentLimitError, UnknownPool
from agentpool.protocol.commands import Wake
from agentpool.store import Store

WORKERS = 50


async def seed_workers(store: Store, tasks: int = 100, tenant: str = "acme") -> None:
    await seed_pool(store)
    for n in range(WORKERS):
        await seed_worker(store, f"w{n}", capacity=5)
    for n in range(tasks):
        await seed_task(store, f"t{n}", tenant=tenant)


async def race(store: Store, room: int = 5) -> dict[str, str]:
    """All workers take at once; returns who has each task."""
    found = await at_once(WORKERS, lambda n: exchange(store, f"w{n}", room=room))
    assert not [error for error in found if isinstance(error, Exception)]
    taken = [(task, f"w{n}") for n in range(WORKERS) for task in ids(found[n])]
    assert len(dict(taken)) == len(taken)
    return dict(taken)


# -- limit_tenant -----------------------------------------------------------------------------------------------


async def test_a_limit_is_set_changed_and_taken_back(store: Store) -> None:
    await seed_pool(store, tenant_limits="running=7 weight=2")
    assert await store.tenants.limit("p", "acme", {"running": 3, "queued": 10**9}) == "queued=1000000000 running=3"
    usage = await store.tenants.usage("p", "acme")
    assert (usage.limits.running, usage.limits.weight, usage.limits.queued) == (3, 2, 10**9)
    assert await store.tenants.limit("p", "acme", {"queued": None}) == "running=3"
    assert await store.tenants.limit("p", "acme", {"running": None}) == ""
    usage = await store.tenants.usage("p", "acme")
    assert (usage.limits.running, usage.limits.queued) == (7, 1000)
    assert await store.connection.redis.exists(store.keys.limits("p")) == 0


async def test_limits_of_an_unknown_pool_are_refused(store: Store) -> None:
    with pytest.raises(UnknownPool):
        await store.tenants.limit("p", "acme", {"running": 3})


async def test_live_is_above_configured_and_that_above_the_defaults(store: Store) -> None:
    await seed_pool(store, **{"tenant_limits": "running=7", "=acme": "running=5"})
    found = {tenant: (await store.tenants.usage("p", tenant)).limits.running for tenant in ("acme", "other", "default")}
    assert found == {"acme": 5, "other": 7, "default": 0}
    await store.tenants.limit("p", "acme", {"running": 1})
    for n in range(3):
        await seed_task(store, f"t{n}", tenant="acme")
        await seed_task(store, f"o{n}", tenant="other")
    await seed_worker(store)
    assert Counter(task[2] for task in ids(await exchange(store, room=9))) == {"t": 1, "o": 3}


async def test_a_higher_limit_frees_who_is_held(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"running": 1})
    for n in range(3):
        await seed_task(store, f"t{n}")
    assert len(ids(await exchange(store, room=9))) == 1
    assert ids(await exchange(store, room=9)) == []
    assert (await store.tenants.usage("p", "default")).held
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        for _ in range(2):
            await store.tenants.limit("p", "default", {"running": 2})
        assert await read_commands(heard) == [Wake(process_id="w1")]
    assert ids(await exchange(store, room=9)) == ["p/t1"]


# -- tasks at once ----------------------------------------------------------------------------------------------


async def test_fifty_workers_never_run_one_too_many(store: Store) -> None:
    await seed_workers(store)
    await store.tenants.limit("p", "acme", {"running": 7})
    running = await race(store)
    assert len(running) == 7
    done = 0
    while running:
        now = list(running.items())
        await at_once(len(now), lambda n, now=now: finish(store, now[n][0], worker=now[n][1]))
        done += len(running)
        running = await race(store)
        assert len(running) <= 7
        assert (await store.tenants.usage("p", "acme")).running == len(running)
    assert done == 100, "who is held comes back"


async def test_pinned_agents_count_too_and_come_back(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=60)
    await store.tenants.limit("p", "acme", {"running": 3})
    for n in range(10):
        await seed_running_agent(store, f"a{n}", tenant="acme")
        await seed_task(store, f"t{n}", agent=f"a{n}", tenant="acme")
    names = [f"a{n}" for n in range(10)]
    found = await exchange(store, names=names)
    done = []
    while found.tasks:
        assert (await store.tenants.usage("p", "acme")).running <= 3
        (task, *_) = found.tasks
        done.append(task.id)
        async with listening(store, store.keys.worker_channel("w1")) as heard:
            await finish(store, task.id, task.header.agent_name)
            woken = [command.agent_id.removeprefix("p/") for command in await read_commands(heard)]
        rest = found.tasks[1:]
        found = await exchange(store, names=woken)
        for other in rest:
            done.append(other.id)
            await finish(store, other.id, other.header.agent_name)
        if not found.tasks:
            found = await exchange(store, names=names)
    assert sorted(done) == sorted(f"p/t{n}" for n in range(10))


async def test_many_agents_that_wait_for_their_tenant_are_woken_in_steps(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=130)
    await store.tenants.limit("p", "acme", {"running": 1})
    names = [f"a{n}" for n in range(120)]
    for name in names:
        await seed_running_agent(store, name, tenant="acme")
        await seed_task(store, f"t-{name}", agent=name, tenant="acme")
    for start in range(0, 120, 40):
        await exchange(store, names=names[start : start + 40])
    redis, keys = store.connection.redis, store.keys
    assert await redis.scard(keys.tenant_mail("p", "acme")) == 119
    woken: set[str] = set()
    async with listening(store, keys.worker_channel("w1")) as heard:
        await store.tenants.limit("p", "acme", {"running": None})
        woken.update(command.agent_id for command in await read_commands(heard) if command.agent_id)
        assert len(woken) == 100
        await asyncio.sleep(0.005)
        await store.tasks.fire_timers("p")
        woken.update(command.agent_id for command in await read_commands(heard) if command.agent_id)
    assert len(woken) == 119
    assert not (await store.tenants.usage("p", "acme")).held


# -- the last place goes to mail and to tasks by type in turns ---------------------------------------------------


async def seed_both(store: Store) -> None:
    """acme may run one task; w1 hosts its agent, for which two wait, and two by type, of which w2 has begun one."""
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "acme", {"running": 1})
    await seed_running_agent(store, tenant="acme")
    await seed_worker(store, "w2")
    for n in range(2):
        await seed_task(store, f"t{n}", tenant="acme")
    assert ids(await exchange(store, "w2", room=1)) == ["p/t0"]
    for n in range(2):
        await seed_task(store, f"m{n}", agent="a1", tenant="acme")
    assert ids(await exchange(store, names=["a1"])) == []


async def end(store: Store, id: str, agent: str = "", worker: str = "w1", **more: Any) -> list[str]:
    """Hand in one task and go on with what the worker then gets; returns what that is."""
    return ids(await exchange(store, worker, ended=[ended(f"p/{id}", agent)], **more))


async def test_neither_mail_nor_tasks_by_type_wait_for_all_of_the_other(store: Store) -> None:
    await seed_both(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await end(store, "t0", worker="w2", room=9) == [], "it is the turn of mail"
        assert [command.agent_id for command in await read_commands(heard)] == ["p/a1"]
    assert ids(await exchange(store, "w2", room=9)) == []
    assert ids(await exchange(store, names=["a1"])) == ["p/m0"]
    async with listening(store, store.keys.worker_channel("w2")) as heard:
        assert await end(store, "m0", "a1", names=["a1"]) == [], "it is the turn of tasks by type"
        assert Wake(process_id="w2") in await read_commands(heard), "for w1 asked for none"
    assert ids(await exchange(store, "w2", room=9)) == ["p/t1"]
    assert await end(store, "t1", worker="w2", room=9) == []
    assert ids(await exchange(store, names=["a1"])) == ["p/m1"]
    assert await end(store, "m1", "a1", names=["a1"], room=9) == []
    assert (await store.tenants.usage("p", "acme")).running == 0


async def test_a_worker_takes_by_type_itself_what_its_agents_leave(store: Store) -> None:
    await seed_both(store)
    await end(store, "t0", worker="w2")
    assert ids(await exchange(store, names=["a1"])) == ["p/m0"]
    assert await end(store, "m0", "a1", names=["a1"], room=9) == ["p/t1"]


async def test_a_turn_that_nobody_takes_ends(store: Store) -> None:
    await seed_both(store)
    assert await end(store, "t0", worker="w2", room=9) == []
    await asyncio.sleep(0.025)
    await store.tasks.fire_timers("p")
    assert ids(await exchange(store, "w2", room=9)) == ["p/t1"], "the worker of the agent did not take it"
    await end(store, "t1", worker="w2")
    assert ids(await exchange(store, names=["a1"])) == ["p/m0"]
    await seed_task(store, "t2", tenant="acme")
    assert await end(store, "m0", "a1", names=["a1"]) == [], "it is the turn of tasks by type"
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await asyncio.sleep(0.025)
        await store.tasks.fire_timers("p")
        assert "p/a1" in [command.agent_id for command in await read_commands(heard)]
    assert ids(await exchange(store, names=["a1"])) == ["p/m1"]
    assert await end(store, "m1", "a1", room=9) == ["p/t2"]


async def test_with_two_places_both_go_on_at_once(store: Store) -> None:
    await seed_both(store)
    await store.tenants.limit("p", "acme", {"running": 2})
    await exchange(store, "w2")
    assert ids(await exchange(store, names=["a1"])) == ["p/m0"]
    assert ids(await exchange(store, "w2", room=9)) == [], "both places are taken"
    assert await end(store, "t0", worker="w2", room=9) == ["p/t1"]
    await seed_task(store, "t2", tenant="acme")
    assert ids(await exchange(store, "w2", ended=[ended("p/t1")])) == []
    assert await end(store, "m0", "a1", names=["a1"], room=9) == ["p/m1", "p/t2"]


# -- what one tenant holds --------------------------------------------------------------------------------------


async def test_fifty_spawns_never_make_one_agent_too_many(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=5)
    await store.tenants.limit("p", "acme", {"agents": 7})
    answers = await at_once(50, lambda n: seed_agent(store, f"a{n}", tenant="acme"))
    refused = [answer for answer in answers if isinstance(answer, AgentLimitError)]
    assert len(refused) == 43
    assert {error.code for error in refused} == {"TOTAL_LIMIT"}
    assert (await store.tenants.usage("p", "acme")).agents == 7, "those that wait for a place count"
    assert await seed_agent(store, "other", tenant="other") is None
    await store.agents.terminate((await store.agents.all("p"))[0].agent_id)
    assert not isinstance(await seed_agent(store, "next", tenant="acme"), Exception)


# -- what is refused at a limit ---------------------------------------------------------------------------------


async def refused(store: Store, limits: str, id: str = "next", **more: object) -> str:
    """Submit a task of acme that shall not wait; returns the limit that refuses it, or ''."""
    try:
        await store.tasks.cancel(await seed_task(store, id, tenant="acme", limits=limits, **more))
    except AgentLimitError as error:
        return error.code
    return ""


async def test_the_total_is_all_that_a_tenant_holds(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, "a1", tenant="acme")
    await seed_lease(store, "runs", tenant="acme")
    await seed_task(store, "queued", tenant="acme")
    await seed_task(store, "later", tenant="acme", delay=LONG_MS)
    await seed_task(store, "mail1", agent="a1", tenant="acme")
    await seed_task(store, "mail2", agent="a1", tenant="acme")
    for number, id in enumerate(["mail2", "mail1", "later", "queued"]):
        held = 6 - number
        await store.tenants.limit("p", "acme", {"agents": held, "running": 0})
        assert await refused(store, "total", f"next{number}") == "TOTAL_LIMIT"
        await store.tenants.limit("p", "acme", {"agents": held + 1})
        assert await refused(store, "total", f"next{number}") == ""
        await store.tasks.cancel(f"p/{id}")
    await store.tenants.limit("p", "acme", {"agents": 2})
    assert await refused(store, "total") == "TOTAL_LIMIT", "its agent, and the task that runs"


async def test_fifty_executions_never_hold_one_too_many(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store, "a1", tenant="acme")
    await seed_task(store, "mail", agent="a1", tenant="acme")
    await store.tenants.limit("p", "acme", {"agents": 7, "running": 0})
    options = [{"delay": LONG_MS}, {}]
    answers = await at_once(50, lambda n: seed_task(store, f"t{n}", tenant="acme", limits="total", **options[n % 2]))
    assert sum(isinstance(answer, str) for answer in answers) == 5
    assert {answer.code for answer in answers if isinstance(answer, AgentLimitError)} == {"TOTAL_LIMIT"}


async def test_tasks_at_once_are_those_that_could_begin_now(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "acme", {"running": 2})
    for name in ("a1", "a2"):
        await seed_running_agent(store, name, tenant="acme")
    await seed_task(store, "later", tenant="acme", delay=LONG_MS)
    await seed_lease(store, "runs", agent="a1", tenant="acme")
    for id in ("mail1", "mail2"):
        await seed_task(store, id, agent="a1", tenant="acme")
    assert await refused(store, "reject") == "", "neither what is delayed nor what waits for a busy agent takes a place"
    await seed_task(store, "ready", agent="a2", tenant="acme")
    assert await refused(store, "reject", "next2") == "CONCURRENT_LIMIT", "an idle agent begins with its mail at once"
    await store.tasks.cancel("p/ready")
    assert await refused(store, "reject", "next3") == ""


@pytest.mark.parametrize("end", ["fire", "cancel", "retry", "expire"])
async def test_what_is_no_longer_delayed_counts_no_more(store: Store, end: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    redis, key = store.connection.redis, store.keys.tenant_delayed("p", "acme")
    if end == "retry":
        await seed_lease(store, tenant="acme")
        await finish(store, verdict="retry", delay_ms=LONG_MS)
    else:
        await seed_task(store, tenant="acme", delay=LONG_MS, **({"expires": 1} if end == "expire" else {}))
    assert await redis.smembers(key) == {"p/t1"}
    if end == "cancel":
        await store.tasks.cancel("p/t1")
    elif end == "expire":
        await asyncio.sleep(0.005)
    else:
        await redis.zadd(store.keys.due("p"), {"start p/t1": 1})
    await store.tasks.fire_timers("p")
    assert await redis.exists(key) == 0
    assert int(await redis.hget(store.keys.pool("p"), "delayed")) == 0


@pytest.mark.parametrize("agent", ["", "a1"])
async def test_a_submit_that_may_wait_looks_at_no_limits_of_what_is_held(store: Store, agent: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store, tenant="acme")
    redis = store.connection.redis
    await seed_task(store, "first", agent=agent, tenant="acme")
    await redis.config_resetstat()
    await seed_task(store, agent=agent, tenant="acme")
    calls = await redis.info("commandstats")
    assert not {"cmdstat_scard", "cmdstat_sadd", "cmdstat_srandmember"} & calls.keys()


# -- a minute ---------------------------------------------------------------------------------------------------


async def test_fifty_workers_never_begin_one_too_many_a_minute(store: Store) -> None:
    await seed_workers(store)
    await store.tenants.limit("p", "acme", {"requests_per_minute": 7})
    running = await race(store)
    assert len(running) == 7
    for task, worker in running.items():
        await finish(store, task, worker=worker)
    assert await race(store) == {}
    assert (await store.tenants.usage("p", "acme")).requests_last_minute == 7


async def test_pinned_agents_use_up_the_minute_too(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=60)
    await store.tenants.limit("p", "acme", {"requests_per_minute": 3})
    for n in range(5):
        await seed_running_agent(store, f"a{n}", tenant="acme")
        await seed_task(store, f"t{n}", agent=f"a{n}", tenant="acme")
    assert len(ids(await exchange(store, names=[f"a{n}" for n in range(5)]))) == 3


async def test_who_has_used_up_a_minute_goes_on_when_it_is_over(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"requests_per_minute": 2})
    for n in range(3):
        await seed_task(store, f"t{n}")
    assert len(ids(await exchange(store, room=9))) == 2
    assert ids(await exchange(store, room=9)) == []
    redis, keys = store.connection.redis, store.keys
    at = await redis.zscore(keys.due("p"), "tenant default")
    now = await store.connection.now_ms()
    assert 58_000 < at - now <= 61_000
    # The minute goes by.
    window = await read_hash(store, keys.tenant_requests("p", "default"))
    await redis.delete(keys.tenant_requests("p", "default"))
    await redis.hset(
        keys.tenant_requests("p", "default"), mapping={int(second) - 61: count for second, count in window.items()}
    )
    await redis.zadd(keys.due("p"), {"tenant default": 1})
    async with listening(store, keys.worker_channel("w1")) as heard:
        await store.tasks.fire_timers("p")
        assert await read_commands(heard) == [Wake(process_id="w1")]
    assert ids(await exchange(store, room=9)) == ["p/t2"]


async def test_tokens_are_reserved_by_what_is_known_so_that_workers_do_not_race_past_the_limit(store: Store) -> None:
    await seed_workers(store, tasks=0)
    await seed_lease(store, "first", "w0", tenant="acme")
    await finish(store, "p/first", worker="w0", tokens=10)
    for n in range(100):
        await seed_task(store, f"t{n}", tenant="acme")
    await store.tenants.limit("p", "acme", {"tokens_per_minute": 100})
    running = await race(store)
    assert len(running) == 9, "90 are left"
    assert (await store.tenants.usage("p", "acme")).tokens_last_minute == 100
    for n, (task, worker) in enumerate(running.items()):
        await finish(store, task, worker=worker, tokens=5 if n < 4 else 10)
    usage = await store.tenants.usage("p", "acme")
    assert usage.tokens_last_minute == 80, "what was not used is given back"
    assert 1 <= len(await race(store)) <= 2


async def test_a_task_that_is_estimated_above_the_limit_can_begin_alone(store: Store) -> None:
    await seed_workers(store, tasks=0)
    await seed_lease(store, "first", "w0", tenant="acme")
    await finish(store, "p/first", worker="w0", tokens=500)
    redis, keys = store.connection.redis, store.keys
    await redis.delete(keys.tenant_tokens("p", "acme"))
    for n in range(9):
        await seed_task(store, f"t{n}", tenant="acme")
    await store.tenants.limit("p", "acme", {"tokens_per_minute": 100})
    assert len(await race(store)) == 1


async def test_a_minute_is_counted_by_seconds_and_forgets(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await finish(store, tokens=10)
    redis, key = store.connection.redis, store.keys.tenant_tokens("p", "default")
    assert 0 < await redis.ttl(key) <= 120
    ((second, _),) = (await read_hash(store, key)).items()
    await redis.hset(key, int(second) - 60, 1000)
    assert (await store.tenants.usage("p", "default")).tokens_last_minute == 10


async def test_a_tenant_that_is_held_keeps_no_other_from_its_turn(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=50)
    for tenant in (f"t{n}" for n in range(30)):
        await store.tenants.limit("p", tenant, {"running": 1})
        for n in range(2):
            await seed_task(store, f"{tenant}-{n}", tenant=tenant)
    await seed_task(store, "free", tenant="free")
    found = await exchange(store, room=50)
    assert len(found.tasks) == 31
    assert "p/free" in ids(found)
    found = await exchange(store, room=19)
    assert (ids(found), found.turns) == ([], 0)
    for n in range(30):
        await finish(store, f"p/t{n}-0")
    assert len(ids(await exchange(store, room=50))) == 30


async def test_settings_hold_at_once(store: Store) -> None:
    """What is counted for one tenant in one exchange is one truth: ended tasks make room in the same call."""
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"running": 2})
    for n in range(4):
        await seed_task(store, f"t{n}")
    first = ids(await exchange(store, room=9))
    assert first == ["p/t0", "p/t1"]
    await asyncio.sleep(0)
    assert ids(await exchange(store, room=9, ended=[ended(task) for task in first])) == ["p/t2", "p/t3"]
