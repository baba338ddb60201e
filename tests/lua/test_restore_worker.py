"""After the server has started anew: what it lost is written again, and nobody is reaped or placed twice meanwhile."""

import msgspec
from msgspec.structs import replace
from support.seeds import (
    MASTER,
    exchange,
    finish,
    header,
    incarnation,
    read_agent,
    read_events,
    read_free,
    read_outcome,
    read_worker,
    seed_agent,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.records import DesiredAgent
from agentpool.protocol.states import AgentStatus
from agentpool.protocol.tasks import TaskEnvelope, encode_task
from agentpool.store import Store

RECORD = encode_task(header(), TaskEnvelope(msgspec.Raw(b"1")))
IDENTITY = {"capacity": 10, "pid": 7, "secret": "s"}


async def desired(store: Store, name: str = "a1", **changes: object) -> DesiredAgent:
    return replace(DesiredAgent.of(await store.agents.get(f"p/{name}")), status=AgentStatus.IDLE, **changes)


def unknown_agent(name: str, incarnation: int, **changes: object) -> DesiredAgent:
    agent = DesiredAgent(
        agent_id=f"p/{name}", agent_type="R", incarnation=incarnation, tenant="acme", status=AgentStatus.IDLE
    )
    return replace(agent, **changes)


async def restore(store: Store, *agents: DesiredAgent, worker: str = "w1", drains: bool = False) -> bool:
    return await store.workers.restore("p", worker, IDENTITY, list(agents), drains=drains)


async def forget_run(store: Store) -> None:
    """As if the server had started anew and no master had its turn since."""
    await store.connection.redis.hset(store.keys.pool("p"), "server_run", "another")


async def test_a_worker_that_was_lost_is_there_again_with_its_agents(store: Store) -> None:
    await seed_pool(store)
    for _ in range(2):
        assert await restore(store, unknown_agent("a1", 5), unknown_agent("a2", 6, status=AgentStatus.PLACED))
    worker = await read_worker(store)
    assert (worker["status"], worker["capacity"], worker["pid"], worker["agent_count"]) == ("ready", "10", "7", "2")
    assert await read_free(store) == {"w1": 8}
    first, second = await read_agent(store, "a1"), await read_agent(store, "a2")
    assert (first["status"], first["process_id"], first["incarnation"], first["tenant"]) == ("idle", "w1", "5", "acme")
    assert second["status"] == "placed"
    assert await store.connection.redis.smembers(store.keys.tenant_agents("p", "acme")) == {"a1", "a2"}
    assert {"worker.restored", "agent.restored"} <= set(await read_events(store))


async def test_one_that_leaves_is_restored_as_draining(store: Store) -> None:
    await seed_pool(store)
    await restore(store, unknown_agent("a1", 5), drains=True)
    assert (await read_worker(store))["status"] == "draining"
    assert await read_free(store) == {}
    assert await store.connection.redis.zscore(store.keys.draining("p"), "w1")


async def test_a_fenced_worker_and_an_unknown_pool_are_refused(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store)
    await store.connection.redis.hset(store.keys.process("w1"), "status", "lost")
    assert not await restore(store, unknown_agent("a1", 5))
    assert token


async def test_of_two_places_the_later_counts(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_running_agent(store)
    await seed_worker(store, "w2")
    older, later = await desired(store), await desired(store, incarnation=await incarnation(store) + 9)
    await restore(store, later, worker="w2")
    agent = await read_agent(store)
    assert (agent["process_id"], agent["incarnation"]) == ("w2", str(later.incarnation))
    assert await read_free(store) == {"w1": 10, "w2": 9}
    await restore(store, older, worker="w1")
    assert (await read_agent(store))["process_id"] == "w2", "what was here before comes too late"
    assert await read_free(store) == {"w1": 10, "w2": 9}


async def test_one_that_waits_is_where_it_runs(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store)
    await restore(store, await desired(store, incarnation=7))
    assert (await read_agent(store))["process_id"] == "w1"
    assert await store.connection.redis.zcard(store.keys.pending("p")) == 0


async def test_an_agent_that_has_ended_stays_so(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    here = await desired(store)
    await store.agents.terminate("p/a1")
    await restore(store, here)
    assert await read_agent(store) == {}
    assert await read_free(store) == {"w1": 10}


async def test_an_agent_that_is_not_there_begins_anew_above_every_earlier_incarnation(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    here = await desired(store)
    await restore(store, replace(here, status=AgentStatus.PENDING))
    agent = await read_agent(store)
    assert (agent["status"], agent["process_id"]) == ("placed", "w1")
    assert int(agent["incarnation"]) > here.incarnation
    assert await read_free(store) == {"w1": 9}


async def test_incarnations_never_repeat_after_a_lost_tail(store: Store) -> None:
    await seed_pool(store)
    for name in ("w1", "w2"):
        await seed_worker(store, name)
    await seed_running_agent(store)
    key, redis = store.keys.agent("p/a1"), store.connection.redis
    before = await redis.hgetall(key)
    given = await incarnation(store)
    await store.workers.reap("p", before["process_id"], proof="owner", authority=MASTER, reason="killed")
    moved = await incarnation(store)
    await redis.hset(key, mapping={"incarnation": given, "process_id": ""})  # the move is lost
    await redis.zadd(store.keys.pending("p"), {"a1": 1})
    await redis.srem(store.keys.worker_agents("p", "w2"), "a1")
    await redis.srem(store.keys.worker_agents("p", "w1"), "a1")
    token = await redis.get(store.keys.leader_lock("p"))
    await store.agents.place_pending("p", token)
    assert await incarnation(store) > moved > given


async def test_one_that_must_not_run_twice_waits_until_all_have_told_what_they_have(store: Store) -> None:
    token = await seed_pool(store)
    redis, pool = store.connection.redis, store.keys.pool("p")
    await redis.hset(pool, "exclusive:R", 1)
    await seed_worker(store, capacity=2)
    for name in ("fills", "fills-2", "a1"):
        await seed_agent(store, name)
    await forget_run(store)
    await store.agents.terminate("p/fills")
    await store.agents.terminate("p/fills-2")
    assert (await read_agent(store))["status"] == "pending", "no master has noticed yet"
    lead = await store.locks.lead("p", token.partition(" ")[2], lease_ms=60_000, gap_ms=2000, hold_ms=60_000)
    assert lead.run
    await redis.zadd(store.keys.pending("p"), {"a1": 1})
    await store.agents.place_pending("p", token)
    assert (await read_agent(store))["status"] == "pending", "it may run on a worker that is not known any more"
    assert await seed_agent(store, "fresh") == "w1", "nobody can have this one"
    await redis.hset(pool, "unsure_until", 1)
    await redis.zadd(store.keys.pending("p"), {"a1": 1})
    await store.agents.place_pending("p", token)
    assert (await read_agent(store))["status"] == "placed"


async def test_nobody_is_reaped_by_time_until_a_master_has_seen_the_restart(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store)
    await store.connection.redis.zadd(store.keys.workers("p"), {"w1": 1})
    await store.connection.redis.hset(store.keys.pool("p"), "hold_until", 1)
    await forget_run(store)
    stale = {"proof": "stale", "authority": token, "timeout_ms": 1000, "reason": "silent"}
    assert await store.workers.reap("p", "w1", **stale) == "held"
    await store.locks.lead("p", token.partition(" ")[2], lease_ms=60_000, gap_ms=2000, hold_ms=60_000)
    assert "server.restarted" in await read_events(store)
    assert await store.workers.reap("p", "w1", **stale) == "held"
    await store.connection.redis.hset(store.keys.pool("p"), "hold_until", 1)
    assert await store.workers.reap("p", "w1", **stale) == "done"


async def test_silence_counts_up_to_the_last_turn_of_a_master(store: Store) -> None:
    """A server whose disk is full can be read: no beat comes then, but no turn of a master either."""
    await seed_pool(store)
    await seed_worker(store)
    redis, now = store.connection.redis, await store.connection.now_ms()
    await redis.zadd(store.keys.workers("p"), {"w1": now - 1500})
    for tick in (now - 1400, now):
        await redis.hset(store.keys.pool("p"), mapping={"tick": tick, "hold_until": 1})
        turn, is_held, signs = await store.workers.signs("p", ["w1"])
        assert (turn - signs["w1"][0], is_held) == (tick - now + 1500, False)


async def test_a_clock_of_the_server_that_jumps_reaps_nobody(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store)
    redis, pool = store.connection.redis, store.keys.pool("p")
    now = await store.connection.now_ms()
    stale = {"proof": "stale", "authority": token, "timeout_ms": 1000, "reason": "silent"}
    for jump, answer in ((3_600_000, "held"), (-3_600_000, "alive")):
        await redis.hset(pool, mapping={"tick": now - jump, "hold_until": 1})
        await redis.zadd(store.keys.workers("p"), {"w1": now - jump})
        assert await store.workers.reap("p", "w1", **stale) == answer
        *_, is_held, signs = await store.workers.signs("p", ["w1"])
        assert is_held or signs["w1"][0] > now


# -- tasks ------------------------------------------------------------------------------------------------------


async def test_a_task_that_runs_is_leased_again_wherever_it_stands(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, "queued")
    await seed_task(store, "mail", agent="a1")
    mail = encode_task(header("a1"), TaskEnvelope(msgspec.Raw(b"1")))
    for _ in range(2):
        await store.tasks.restore("p", "w1", {"p/queued": RECORD, "p/mail": mail, "p/lost": RECORD})
    assert await read_free(store) == {"w1": 7}
    agent = await read_agent(store)
    assert (agent["status"], agent["task_id"]) == ("active", "p/mail")
    for task in ("p/queued", "p/lost"):
        assert (await finish(store, task)).stale == ()
        assert await read_outcome(store, task)
    assert (await finish(store, "p/mail", agent="a1")).stale == ()
    assert (await read_agent(store))["status"] == "idle"
    assert await read_free(store) == {"w1": 9}


async def test_what_has_its_outcome_or_another_holder_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_lease(store, "done", "w1")
    await finish(store, "p/done")
    before = await read_outcome(store, "p/done")
    await seed_worker(store, "w2")
    await seed_lease(store, "others", "w2")
    await store.tasks.restore("p", "w1", {"p/done": RECORD, "p/others": RECORD})
    assert await read_outcome(store, "p/done") == before
    assert (await finish(store, "p/others", worker="w1")).stale == ("p/others",)
    assert await read_free(store) == {"w1": 10, "w2": 9}


async def test_a_task_of_an_agent_that_has_ended_ends_with_it(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    mail = encode_task(header("a1"), TaskEnvelope(msgspec.Raw(b"1")))
    await seed_task(store, "m1", agent="a1")
    await exchange(store, names=["a1"])
    await store.connection.redis.delete(store.keys.agent("p/a1"))
    await store.tasks.restore("p", "w1", {"p/m1": b"", "p/m2": mail})
    assert "agent_terminated" in await read_outcome(store, "p/m1")
    redis, keys = store.connection.redis, store.keys
    assert not await redis.exists(keys.mailbox("p", "a1"), keys.leases("p"), keys.task("p/m2"))


async def test_what_a_worker_has_not_goes_back(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_lease(store, "t1", "w1")
    await seed_task(store, "m1", agent="a1")
    await exchange(store, names=["a1"])
    assert (await read_agent(store))["status"] == "active"
    for _ in range(2):
        await store.tasks.restore("p", "w1", {"p/t1": b"", "p/m1": b""})
    assert (await read_agent(store))["status"] == "idle"
    assert await read_free(store) == {"w1": 9}
    assert (await store.tasks.info("p/t1"))["status"] == "queued"
    taken = await exchange(store, room=5, names=["a1"])
    assert {task.id for task in taken.tasks} == {"p/t1", "p/m1"}
