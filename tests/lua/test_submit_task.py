"""submit_tasks, claim_tasks: from a client's queue to a worker's lease."""

import asyncio
from collections import Counter

import msgspec
import pytest
from support.seeds import (
    LONG_MS,
    at_once,
    listening,
    outcome,
    read_agent,
    read_commands,
    read_free,
    read_outcome,
    read_texts,
    read_worker,
    seed_agent,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import AgentTerminated, InputTooLarge, QueueFull, UnknownAgent, UnknownAgentType, UnknownPool
from agentpool.protocol.commands import Wake
from agentpool.protocol.records import TaskEnvelope, TaskHeader
from agentpool.store import Store
from agentpool.store.tasks import Claim


async def claim(store: Store, number: int = 1, *, by_type: int = 0, names: list[str] | None = None) -> Claim:
    found = await store.tasks.claim("p", "w1", number, by_type=by_type, names=names or [])
    assert found is not None
    return found


def ids(claimed: Claim) -> list[str]:
    return [task.id for task in claimed.tasks]


# -- submit_tasks -----------------------------------------------------------------------------------------------


async def test_task_for_an_idle_agent_wakes_its_worker(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await seed_task(store, agent="a1")
        assert await read_commands(heard) == [Wake(process_id="w1", agent_id="p/a1", version=2)]
    assert await store.connection.redis.zrange(store.keys.mailbox("p", "a1"), 0, -1) == ["p/t1"]
    assert await store.tasks.info("p/t1") == {"task_id": "p/t1", "status": "queued", "process_id": ""}


async def test_task_for_an_agent_that_waits_or_works_just_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store)
    await seed_task(store, "t1", agent="a1")
    await seed_worker(store)
    await store.agents.confirm("p", "w1", "a1", 1)
    await claim(store, names=["a1"])
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await seed_task(store, "t2", agent="a1")
        assert await read_texts(heard) == []
    assert await store.tasks.complete("w1", "p/t1", "a1", outcome()) == (1, 0)


async def test_task_by_type_wakes_the_worker_with_most_room(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=1)
    await seed_worker(store, "w2", capacity=2)
    async with listening(store, store.keys.pool_channel("p"), store.keys.leader_channel("p")) as heard:
        await seed_task(store, tenant="acme")
        assert await read_commands(heard) == [Wake(process_id="w2")]
    assert await store.connection.redis.zrange(store.keys.lanes("p"), 0, -1) == ["R:acme"]
    assert await store.connection.redis.zrange(store.keys.lane("p", "R", "acme"), 0, -1) == ["p/t1"]


async def test_task_without_a_worker_asks_for_room(store: Store) -> None:
    await seed_pool(store)
    async with listening(store, store.keys.leader_channel("p")) as heard:
        await seed_task(store)
        assert await read_texts(heard) == ["room wanted"]


async def test_many_tasks_keep_their_order_and_wake_as_many_workers_as_they_need(store: Store) -> None:
    await seed_pool(store)
    for number, capacity in enumerate((1, 3, 2)):
        await seed_worker(store, f"w{number}", capacity=capacity)
    header = TaskHeader("", "", "R", "acme")
    tasks = [(f"p/t{number:02}", TaskEnvelope(msgspec.Raw(b"1"))) for number in range(5)]
    async with listening(store, store.keys.pool_channel("p"), store.keys.leader_channel("p")) as heard:
        await store.tasks.submit_many(tasks, header)
        assert await read_commands(heard) == [Wake(process_id="w1"), Wake(process_id="w2")]
    lane = store.keys.lane("p", "R", "acme")
    assert await store.connection.redis.zrange(lane, 0, -1) == [task_id for task_id, _ in tasks]
    more = [(f"p/u{number:03}", TaskEnvelope(msgspec.Raw(b"1"))) for number in range(250)]
    async with listening(store, store.keys.leader_channel("p")) as heard:
        await store.tasks.submit_many(more, header)
        assert await read_texts(heard) == ["room wanted"] * 3
    assert await store.connection.redis.zcard(lane) == 255
    await store.tasks.submit_many(more, header)
    assert await store.connection.redis.zcard(lane) == 255, "a repeat adds nothing"


async def test_many_tasks_are_refused_together(store: Store) -> None:
    await seed_pool(store, max_queued=3, max_input_bytes=1000)
    header = TaskHeader("", "", "R", "acme")
    small, large = TaskEnvelope(msgspec.Raw(b"1")), TaskEnvelope(msgspec.Raw(b'"' + b"x" * 3000 + b'"'))
    with pytest.raises(QueueFull):
        await store.tasks.submit_many([(f"p/t{number}", small) for number in range(4)], header)
    with pytest.raises(InputTooLarge):
        await store.tasks.submit_many([("p/t1", small), ("p/t2", large)], header)
    assert (await store.pools.observe("p")).waiting_tasks == 0
    assert await store.connection.redis.keys("task:*") == []


async def test_submitting_repeats(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for agent in ("", "a1"):
        answers = await at_once(50, lambda _, agent=agent: seed_task(store, f"t{agent}", agent=agent))
        assert answers == [f"p/t{agent}"] * 50
    assert ids(await claim(store, by_type=9, names=["a1"])) == ["p/ta1", "p/t"]
    await store.tasks.complete("w1", "p/t", "", outcome())
    await seed_task(store, "t")
    assert await read_outcome(store, "p/t") == "succeeded", "also after its end"
    assert ids(await claim(store, 2, by_type=9)) == []


async def test_refusals_change_nothing(store: Store) -> None:
    with pytest.raises(UnknownPool):
        await seed_task(store)
    await seed_pool(store, types=["Q"])
    with pytest.raises(UnknownAgentType):
        await seed_task(store)
    with pytest.raises(UnknownAgent):
        await seed_task(store, agent="a1")
    await seed_agent(store, agent_type="Q")
    await store.agents.terminate("p/a1")
    with pytest.raises(AgentTerminated, match="terminated on request"):
        await seed_task(store, agent="a1")
    assert await store.connection.redis.exists(store.keys.task("p/t1")) == 0
    assert (await store.pools.observe("p")).waiting_tasks == 0


async def test_input_over_the_bound_is_refused(store: Store) -> None:
    await seed_pool(store, max_input_bytes=1000)
    await seed_task(store, "t1", input="x" * 998)
    with pytest.raises(InputTooLarge) as caught:
        await seed_task(store, "t2", input="x" * 3000)
    assert caught.value.bound == 1000
    assert caught.value.size > 3000


async def test_queues_are_bounded(store: Store) -> None:
    await seed_pool(store, max_queued=2)
    await seed_agent(store)
    for agent in ("", "a1"):
        for i in range(2):
            await seed_task(store, f"t{agent}{i}", agent=agent)
        with pytest.raises(QueueFull) as caught:
            await seed_task(store, f"t{agent}2", agent=agent)
        assert (caught.value.depth, caught.value.bound) == (2, 2)
        await seed_task(store, f"t{agent}1", agent=agent)


async def test_fifty_clients_never_go_over_the_bound(store: Store) -> None:
    await seed_pool(store, max_queued=20)
    answers = await at_once(50, lambda i: seed_task(store, f"t{i}"))
    assert Counter(type(answer) for answer in answers) == {str: 20, QueueFull: 30}
    assert (await store.pools.observe("p")).waiting_tasks == 20


async def test_payload_passes_through_unchanged(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    payload = {"list": [], "map": {}, "big": 2**63 - 1, "text": 'ü "\n\x00 😀', "null": None}
    await seed_task(store, input=payload)
    (task,) = (await claim(store, by_type=1)).tasks
    assert msgspec.json.decode(task.envelope.input) == payload
    assert task.header == TaskHeader("client:c:replies", "", "R", "default")


async def test_five_hundred_submit_at_once_over_few_connections(store: Store) -> None:
    await seed_pool(store)
    answers = await at_once(500, lambda i: seed_task(store, f"t{i}"))
    assert all(isinstance(answer, str) for answer in answers)


# -- claim_tasks ------------------------------------------------------------------------------------------------


async def test_claimed_task_is_leased_and_holds_a_slot(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_task(store, tenant="acme")
    claimed = await claim(store, by_type=5)
    assert (ids(claimed), claimed.lanes) == (["p/t1"], 0)
    assert await store.connection.redis.hgetall(store.keys.leases("p")) == {"p/t1": "w1"}
    assert await store.connection.redis.smembers(store.keys.tenant_tasks("p", "acme")) == {"p/t1"}
    assert await read_free(store) == {"w1": 9}
    assert (await read_worker(store))["task_count"] == "1"
    assert await store.tasks.info("p/t1") == {"task_id": "p/t1", "status": "leased", "process_id": "w1"}
    assert await store.connection.redis.exists(store.keys.lanes("p")) == 0


async def test_each_idle_agent_gets_one_task_in_order(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for name in ("a1", "a2"):
        await seed_running_agent(store, name)
    for i in range(3):
        await seed_task(store, f"t{i}", agent="a1")
    assert ids(await claim(store, 1, names=["a1", "a2", "unknown"])) == ["p/t0"]
    agent = await read_agent(store)
    assert (agent["status"], agent["task_id"]) == ("active", "p/t0")
    assert ids(await claim(store, 2, names=["a1"])) == [], "one at a time"
    assert await read_free(store) == {"w1": 8}, "its agent has the slot already"
    await store.tasks.complete("w1", "p/t0", "a1", outcome())
    assert ids(await claim(store, 3, names=["a1", "a1"])) == ["p/t1"]


async def test_another_workers_agent_gives_nothing(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w2")
    await seed_running_agent(store)
    await seed_worker(store, "w1")
    await seed_task(store, agent="a1")
    assert ids(await claim(store, names=["a1"])) == []


async def test_claims_by_type_are_within_free_slots_and_limit(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=3)
    await seed_running_agent(store)
    for i in range(5):
        await seed_task(store, f"t{i}")
    assert ids(await claim(store, 1, by_type=1)) == ["p/t0"]
    claimed = await claim(store, 2, by_type=10)
    assert (ids(claimed), claimed.lanes) == (["p/t1"], 1)
    assert ids(await claim(store, 3, by_type=10)) == []
    assert await read_free(store) == {"w1": 0}


async def test_tenants_take_turns(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    for i in range(4):
        await seed_task(store, f"a{i}", tenant="a")
    await seed_task(store, "b0", tenant="b")
    await seed_task(store, "c0", tenant="c")
    assert ids(await claim(store, 1, by_type=6)) == ["p/a0", "p/b0", "p/c0", "p/a1", "p/a2", "p/a3"]


async def test_order_is_first_in_first_out_within_a_microsecond_too(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=100)
    header, envelope = TaskHeader("", "", "R", "t"), TaskEnvelope(msgspec.Raw(b"1"))
    async with asyncio.TaskGroup() as group:
        for i in range(60):
            group.create_task(store.tasks.submit(f"p/{i}", header, envelope))
    ranks = await store.connection.redis.zrange(store.keys.lane("p", "R", "t"), 0, -1, withscores=True)
    assert len({rank for _, rank in ranks}) == 60
    assert ids(await claim(store, 1, by_type=60)) == [id for id, _ in ranks]


async def test_claim_repeats_its_batch(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, "t0", agent="a1")
    for i in range(1, 4):
        await seed_task(store, f"t{i}")
    first = await claim(store, 7, by_type=2, names=["a1"])
    assert ids(first) == ["p/t0", "p/t1", "p/t2"]
    assert (await claim(store, 7, by_type=2, names=["a1"])).tasks == first.tasks
    await store.tasks.complete("w1", "p/t1", "", outcome())
    assert ids(await claim(store, 7, by_type=2)) == ["p/t0", "p/t2"], "what is unfinished"
    assert ids(await claim(store, 8, by_type=2)) == ["p/t3"]


async def test_an_empty_batch_is_repeated_too(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert ids(await claim(store, 1, by_type=2)) == []
    await seed_task(store)
    assert ids(await claim(store, 1, by_type=2)) == []
    assert ids(await claim(store, 2, by_type=2)) == ["p/t1"]


async def test_a_claim_that_comes_late_takes_nothing(store: Store) -> None:
    """A claim that stuck in a socket while the worker went on would lease tasks that nobody hears of."""
    await seed_pool(store)
    await seed_worker(store)
    await claim(store, 10, by_type=2)
    await seed_task(store)
    assert ids(await claim(store, 9, by_type=2)) == []
    assert ids(await claim(store, 10, by_type=2)) == []
    assert ids(await claim(store, 11, by_type=2)) == ["p/t1"]


async def test_fifty_repeats_of_one_claim_lease_one_batch(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=100)
    for i in range(20):
        await seed_task(store, f"t{i}")
    claims = await at_once(50, lambda _: claim(store, 1, by_type=5))
    assert {tuple(ids(claimed)) for claimed in claims} == {tuple(f"p/t{i}" for i in range(5))}
    assert (await store.pools.observe("p")).running_tasks == 5


async def test_fifty_claims_give_each_task_once(store: Store) -> None:
    await seed_pool(store)
    for w in range(50):
        await seed_worker(store, f"w{w}", capacity=3)
    for i in range(90):
        await seed_task(store, f"t{i}", tenant=f"t{i % 3}")
    claims = await at_once(50, lambda w: store.tasks.claim("p", f"w{w}", 1, by_type=5, names=[]))
    taken = [id for claimed in claims for id in ids(claimed)]
    assert len(taken) == len(set(taken)) == 90
    assert max(len(claimed.tasks) for claimed in claims) == 3
    assert sum((await read_free(store)).values()) == 50 * 3 - 90


async def test_worker_that_was_given_up_claims_nothing(store: Store) -> None:
    await seed_pool(store)
    assert await store.tasks.claim("p", "w1", 1, by_type=1, names=[]) is None
    assert await read_worker(store) == {}


async def test_outcome_outlives_its_queue_for_a_while(store: Store) -> None:
    await seed_pool(store, result_ttl_ms=LONG_MS)
    await seed_worker(store)
    await seed_task(store)
    assert await store.connection.redis.pttl(store.keys.task("p/t1")) == -1
    await claim(store, by_type=1)
    await store.tasks.complete("w1", "p/t1", "", outcome())
    assert LONG_MS - 10_000 < await store.connection.redis.pttl(store.keys.task("p/t1")) <= LONG_MS
