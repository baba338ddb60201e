"""submit_tasks: what is accepted, what is refused, and where it waits."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from support.seeds import (
    LONG_MS,
    at_once,
    exchange,
    finish,
    header,
    ids,
    incarnation,
    listening,
    read_commands,
    read_outcome,
    read_texts,
    seed_agent,
    seed_host,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.doctor import examine
from agentpool.errors import (
    AgentLimitError,
    AgentTerminated,
    IdempotencyConflict,
    InputTooLarge,
    QueueFull,
    UnknownAgent,
    UnknownAgentType,
    UnknownPool,
    Unplaceable,
)
from agentpool.protocol.commands import Wake
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.tasks import TaskEnvelope
from agentpool.store import Store
from agentpool.store.tasks import SubmitOptions, TaskGroup

# -- submit_tasks -----------------------------------------------------------------------------------------------


async def test_task_for_an_idle_agent_wakes_its_worker(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await seed_task(store, agent="a1")
        assert await read_commands(heard) == [Wake(process_id="w1", agent_id="p/a1", version=2)]
    assert await store.connection.redis.zrange(store.keys.mailbox("p", "a1"), 0, -1) == ["p/t1"]
    info = await store.tasks.info("p/t1")
    assert info == {"task_id": "p/t1", "status": "queued", "process_id": "", "attempts": 0, "crashes": 0}


async def test_task_for_an_agent_that_waits_or_works_just_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_agent(store)
    await seed_task(store, "t1", agent="a1")
    await seed_worker(store)
    await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1"))
    await exchange(store, names=["a1"])
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        await seed_task(store, "t2", agent="a1")
        assert await read_texts(heard) == []
    assert (await finish(store, "p/t1", "a1")).mail == {"a1": 1}


async def test_task_by_type_wakes_the_worker_with_most_room(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=1)
    await seed_worker(store, "w2", capacity=2)
    async with listening(store, store.keys.pool_channel("p"), store.keys.leader_channel("p")) as heard:
        await seed_task(store, tenant="acme")
        assert await read_commands(heard) == [Wake(process_id="w2")]
    redis, keys = store.connection.redis, store.keys
    assert await redis.smembers(keys.lanes("p")) == {"normal"}
    assert await redis.zrange(keys.turns("p", "normal"), 0, -1) == ["acme"]
    assert await redis.zrange(keys.lane("p", "normal", "acme"), 0, -1) == ["p/t1"]


async def test_task_without_a_worker_asks_for_room(store: Store) -> None:
    await seed_pool(store)
    async with listening(store, store.keys.leader_channel("p")) as heard:
        await seed_task(store)
        assert await read_texts(heard) == ["room wanted"]


async def test_many_tasks_keep_their_order_and_wake_as_many_workers_as_they_need(store: Store) -> None:
    await seed_pool(store)
    for number, capacity in enumerate((1, 3, 2)):
        await seed_worker(store, f"w{number}", capacity=capacity)
    head = header(tenant="acme", reply_to="")
    tasks = [(f"p/t{number:02}", TaskEnvelope(msgspec.Raw(b"1"))) for number in range(5)]
    async with listening(store, store.keys.pool_channel("p"), store.keys.leader_channel("p")) as heard:
        await store.tasks.submit_many(tasks, head)
        assert await read_commands(heard) == [Wake(process_id="w1"), Wake(process_id="w2")]
    lane = store.keys.lane("p", "normal", "acme")
    assert await store.connection.redis.zrange(lane, 0, -1) == [task_id for task_id, _ in tasks]
    more = [(f"p/u{number:03}", TaskEnvelope(msgspec.Raw(b"1"))) for number in range(250)]
    async with listening(store, store.keys.leader_channel("p")) as heard:
        await store.tasks.submit_many(more, head)
        assert set(await read_texts(heard)) <= {"room wanted"}, "told so once in a while"
    assert await store.connection.redis.zcard(lane) == 255
    await store.tasks.submit_many(more, head)
    assert await store.connection.redis.zcard(lane) == 255, "a repeat adds nothing"


async def test_many_tasks_are_refused_together(store: Store) -> None:
    await seed_pool(store, max_queued=3, max_input_bytes=1000)
    head = header(tenant="acme", reply_to="")
    small, large = TaskEnvelope(msgspec.Raw(b"1")), TaskEnvelope(msgspec.Raw(b'"' + b"x" * 3000 + b'"'))
    with pytest.raises(QueueFull):
        await store.tasks.submit_many([(f"p/t{number}", small) for number in range(4)], head)
    with pytest.raises(InputTooLarge):
        await store.tasks.submit_many([("p/t1", small), ("p/t2", large)], head)
    assert (await store.pools.observe("p")).waiting_tasks == 0
    assert await store.connection.redis.keys("task:*") == []


async def test_submitting_repeats(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    for agent in ("", "a1"):
        answers = await at_once(50, lambda _, agent=agent: seed_task(store, f"t{agent}", agent=agent))
        assert answers == [f"p/t{agent}"] * 50
    assert ids(await exchange(store, room=9, names=["a1"])) == ["p/ta1", "p/t"]
    await finish(store, "p/t")
    await seed_task(store, "t")
    assert await read_outcome(store, "p/t") == "succeeded", "also after its end"
    assert ids(await exchange(store, room=9)) == []


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
    (task,) = (await exchange(store, room=1)).tasks
    assert msgspec.json.decode(task.envelope.input) == payload
    assert task.header == header()


async def test_five_hundred_submit_at_once_over_few_connections(store: Store) -> None:
    await seed_pool(store)
    answers = await at_once(500, lambda i: seed_task(store, f"t{i}"))
    assert all(isinstance(answer, str) for answer in answers)


# -- bounds -----------------------------------------------------------------------------------------------------


async def test_the_queue_of_a_tenant_is_its_own(store: Store) -> None:
    await seed_pool(store, max_queued=2)
    await store.tenants.limit("p", "big", {"queued": 4})
    for tenant, bound in (("small", 2), ("big", 4)):
        answers = await at_once(50, lambda i, tenant=tenant: seed_task(store, f"{tenant}{i}", tenant=tenant))
        refused = [answer for answer in answers if isinstance(answer, QueueFull)]
        assert (len(refused), refused[0].bound) == (50 - bound, bound)
        assert refused[0].retry_after


async def test_all_lanes_of_a_tenant_count(store: Store) -> None:
    await seed_pool(store, max_queued=3)
    for number, lane in enumerate(("urgent", "normal", "batch")):
        await seed_task(store, f"t{number}", lane=lane)
    with pytest.raises(QueueFull):
        await seed_task(store, "t4", lane="urgent")


async def test_the_queue_of_the_pool_is_bounded(store: Store) -> None:
    await seed_pool(store, max_queued_pool=5)
    answers = await at_once(50, lambda i: seed_task(store, f"t{i}", tenant=f"t{i % 10}"))
    refused = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert (len(refused), refused[0].bound) == (45, 5)
    assert (await store.pools.observe("p")).waiting_tasks == 5


async def test_tasks_that_another_waits_for_are_not_refused(store: Store) -> None:
    await seed_pool(store, max_queued=1)
    await seed_worker(store)
    parent = await seed_lease(store)
    for number in range(5):
        await seed_task(store, f"c{number}", lane="child", parent=parent)
    assert (await store.pools.observe("p")).waiting_tasks == 5


# -- keys -------------------------------------------------------------------------------------------------------


async def test_a_key_is_one_task(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    answers = await at_once(50, lambda i: seed_task(store, f"t{i}", key="k", digest="d"))
    (first,) = set(answers)
    assert (await store.pools.observe("p")).waiting_tasks == 1
    assert ids(await exchange(store, room=5)) == [first]
    assert await seed_task(store, "again", key="k", digest="d") == first, "while it runs"
    await finish(store, first)
    assert await seed_task(store, "again", key="k", digest="d") == first, "and when it has ended"
    assert await seed_task(store, "other", key="l", digest="d") == "p/other"


async def test_a_key_with_another_input_is_a_conflict(store: Store) -> None:
    await seed_pool(store)
    await seed_task(store, key="k", digest="d")
    with pytest.raises(IdempotencyConflict, match="p/t1"):
        await seed_task(store, "t2", key="k", digest="e")
    assert await store.connection.redis.exists(store.keys.task("p/t2")) == 0


async def test_a_key_lives_on_for_its_time(store: Store) -> None:
    await seed_pool(store, key_ttl_ms=30)
    await seed_worker(store)
    redis, key = store.connection.redis, store.keys.key("p", "k")
    task = await seed_lease(store, key="k", digest="d")
    assert await redis.pttl(key) == -1, "not before the end"
    await finish(store, task)
    assert 0 < await redis.pttl(key) <= 30
    await asyncio.sleep(0.04)
    assert await seed_task(store, "t2", key="k", digest="e") == "p/t2"
    assert await redis.pttl(key) == -1


@pytest.mark.parametrize("end", ["cancel", "expire", "dead", "terminate"])
async def test_a_key_ends_with_its_task_however_that_ends(store: Store, end: str) -> None:
    await seed_pool(store)
    await seed_worker(store)
    if end == "dead":
        await seed_lease(store, key="k", digest="d")
        await finish(store, verdict="dead")
    elif end == "terminate":
        await seed_running_agent(store)
        await seed_task(store, agent="a1", key="k", digest="d")
        await store.agents.terminate("p/a1")
    else:
        await seed_task(store, key="k", digest="d", expires=1)
        await asyncio.sleep(0.005)
        await (store.tasks.cancel("p/t1") if end == "cancel" else store.tasks.fire_timers("p"))
    assert 0 < await store.connection.redis.pttl(store.keys.key("p", "k")) <= LONG_MS


# -- labels -----------------------------------------------------------------------------------------------------


async def test_labels_that_no_host_has_are_refused_by_name(store: Store) -> None:
    await seed_pool(store)
    with pytest.raises(Unplaceable, match="gpu"):
        await seed_task(store, lane="normal+gpu")
    await seed_host(store, "h1", ["gpu"])
    await seed_host(store, "h2", ["ssd"])
    await seed_task(store, lane="normal+gpu")
    with pytest.raises(Unplaceable):
        await seed_task(store, "t2", lane="normal+gpu+ssd")
    await store.hosts.forget("p", "h1")
    with pytest.raises(Unplaceable):
        await seed_task(store, "t3", lane="normal+gpu")


async def test_the_labels_of_a_type_and_of_a_task_are_one_lane(store: Store) -> None:
    token = await seed_pool(store)
    infos = [TypeInfo(name="R", module="tests", labels=("gpu",))]
    assert await store.pools.apply(
        "p", token, infos, {"max_input_bytes": 1000, "max_queued": 10, "max_workers": 9, "min_workers": 0}
    )
    await seed_host(store, "h1", ["gpu", "ssd"])
    await seed_task(store, "t1")
    await seed_task(store, "t2", lane="normal+ssd")
    await seed_task(store, "t3", lane="normal+gpu+ssd")
    assert await store.connection.redis.smembers(store.keys.lanes("p")) == {"normal+gpu", "normal+gpu+ssd"}
    await seed_worker(store, "w1")
    await seed_worker(store, "w2", labels="gpu")
    await seed_worker(store, "w3", labels="gpu ssd")
    assert ids(await exchange(store, "w1", room=9)) == []
    found = await exchange(store, "w2", room=9)
    assert (ids(found), found.turns) == (["p/t1"], 0), "what it may not take is not counted"
    assert ids(await exchange(store, "w3", room=9)) == ["p/t2", "p/t3"]


async def test_a_task_with_many_long_labels_lives_like_others(store: Store) -> None:
    """Scripts read the beginning of a record: all of its header must be there."""
    await seed_pool(store)
    labels = [f"{n:02}" + "x" * 60 for n in range(20)]
    await seed_host(store, "h1", labels)
    await seed_worker(store, labels=" ".join(labels))
    await seed_task(store, lane="+".join(["normal", *labels]), key="k" * 32, digest="d" * 32)
    assert ids(await exchange(store, room=1)) == ["p/t1"]
    assert (await finish(store)).stale == ()
    assert await read_outcome(store) == "succeeded"


async def test_a_header_that_scripts_could_not_read_is_refused(store: Store) -> None:
    await seed_pool(store)
    labels = [f"{n:02}" + "x" * 60 for n in range(40)]
    await seed_host(store, "h1", labels)
    with pytest.raises(InputTooLarge):
        await seed_task(store, lane="+".join(["normal", *labels]))


# -- refused at a limit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "options", "code"),
    [
        ({"running": 7}, {"limits": "reject"}, "CONCURRENT_LIMIT"),
        ({"agents": 7}, {"limits": "total"}, "TOTAL_LIMIT"),
        ({"requests_per_minute": 7}, {"limits": "reject"}, "REQUEST_RATE_LIMIT"),
    ],
)
async def test_fifty_clients_that_will_not_wait_never_go_over_a_limit(
    store: Store, limits: dict[str, float], options: dict[str, str], code: str
) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1", capacity=100)
    await seed_worker(store, "w2", capacity=100)
    await store.tenants.limit("p", "acme", limits)

    async def either(i: int) -> object:
        """Some of the callers are workers, so that tasks wait and run."""
        if i % 10 == 0:
            return await exchange(store, ("w1", "w2")[i // 10 % 2], 100 + i, room=3)
        return await seed_task(store, f"t{i}", tenant="acme", **options)

    answers = await at_once(60, either)
    assert sum(isinstance(answer, str) for answer in answers) == 7
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert len(refused) == 47
    assert all(isinstance(error, AgentLimitError) and error.code == code for error in refused)
    assert isinstance(await seed_task(store, "other", **options), str), "other tenants are free"


async def test_tokens_used_up_are_refused_until_their_minute_is_over(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"tokens_per_minute": 100})
    await seed_lease(store, limits="reject")
    await finish(store, tokens=100)
    with pytest.raises(AgentLimitError) as caught:
        await seed_task(store, "t2", limits="reject")
    assert caught.value.code == "TOKEN_RATE_LIMIT"
    assert 58 < (caught.value.retry_after or 0) <= 60
    assert await seed_task(store, "t2") == "p/t2", "who will wait may"


async def test_a_slot_that_is_free_again_is_given(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.tenants.limit("p", "default", {"running": 1})
    await seed_lease(store, limits="reject")
    with pytest.raises(AgentLimitError):
        await seed_task(store, "t2", limits="reject")
    await finish(store)
    assert await seed_task(store, "t2", limits="reject") == "p/t2"


# -- several groups in one call ---------------------------------------------------------------------------------


def group(ids: str, tenant: str = "default", **more: Any) -> TaskGroup:
    """Tasks of one tenant, whose ids are words."""
    envelope = TaskEnvelope(msgspec.Raw(b"null"))
    delay = more.pop("delay", 0)
    return TaskGroup(
        header(tenant=tenant, **more), SubmitOptions(delay=delay), [(f"p/{id}", envelope) for id in ids.split()]
    )


async def test_each_group_of_a_call_gets_its_own_answer(store: Store) -> None:
    await seed_pool(store, max_queued=3)
    await seed_worker(store, capacity=1)
    await store.tenants.limit("p", "small", {"queued": 1})
    answers = await store.tasks.submit_groups(
        [
            group("a1 a2", "a"),
            group("s1 s2", "small"),
            group("x1", "a", agent_type="Unknown"),
            group("b1", "b"),
            group("a3 a4", "a"),
            group("s3", "small", lane="urgent"),
        ]
    )
    assert [type(answer) for answer in answers] == [str, QueueFull, UnknownAgentType, str, QueueFull, str]
    assert (answers[1].depth, answers[1].bound, answers[4].depth) == (0, 1, 2)
    assert (await store.pools.observe("p")).waiting_tasks == 4
    assert sorted(ids(await exchange(store, room=1, prefetch=90))) == ["p/s3"], "one slot, urgent first"
    assert await examine(store) == []


async def test_groups_count_together_against_the_bound_of_the_pool(store: Store) -> None:
    await seed_pool(store, max_queued_pool=3)
    answers = await store.tasks.submit_groups([group("a1 a2", "a"), group("d1", "d", delay=5000), group("b1", "b")])
    assert [type(answer) for answer in answers] == [str, str, QueueFull]


async def test_what_is_known_of_a_group_is_passed_over_and_not_counted(store: Store) -> None:
    await seed_pool(store, max_queued=3)
    assert await store.tasks.submit_groups([group("t1 t2")]) == [""]
    assert await store.tasks.submit_groups([group("t1 t2 t3")]) == [""]
    (refused,) = await store.tasks.submit_groups([group("t2 t3 t4")])
    assert isinstance(refused, QueueFull)
    assert await store.tasks.submit_groups([group("t1 t2 t3"), group("d1 d2", "late", delay=5000)]) == ["", ""]
    assert await store.tasks.submit_groups([group("d1 d2 d3", "late", delay=5000)]) == [""]
    observed = await store.pools.observe("p")
    assert (observed.waiting_tasks, observed.delayed) == (3, 3)
    record = await store.connection.ask("GET", store.keys.task("p/d3"))
    assert record.partition("\n")[0].count("delay=1") == 1
    assert await examine(store) == []


async def test_a_task_that_a_group_names_twice_is_one(store: Store) -> None:
    await seed_pool(store)
    assert await store.tasks.submit_groups([group("t1 t1"), group("t1 t2")]) == ["", ""]
    assert (await store.pools.observe("p")).waiting_tasks == 2
    await seed_worker(store, capacity=2)
    assert sorted(ids(await exchange(store, room=2))) == ["p/t1", "p/t2"]
    assert await examine(store) == []
