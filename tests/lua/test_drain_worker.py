"""drain_worker, retire_worker, release_agent: how a worker leaves in order."""

import pytest
from support.seeds import (
    at_once,
    exchange,
    finish,
    incarnation,
    listening,
    read_agent,
    read_commands,
    read_events,
    read_free,
    read_history,
    read_texts,
    read_worker,
    seed_agent,
    seed_order,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.errors import InvalidInput, UnknownWorker
from agentpool.protocol.commands import Drain, Spawn
from agentpool.store import Store


async def drain(store: Store, worker: str = "w1", *, only_idle: bool = False) -> bool:
    return await store.workers.drain("p", worker, reason="test", only_idle=only_idle)


# -- drain_worker -----------------------------------------------------------------------------------------------


async def test_draining_worker_leaves_the_index_and_is_told(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_agent(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await drain(store)
        assert await read_commands(heard) == [Drain(process_id="w1", version=2)]
    worker = await read_worker(store)
    assert (worker["status"], worker["reason"]) == ("draining", "test")
    assert await read_free(store) == {}
    assert (await store.pools.observe("p")).draining == 1
    assert await seed_agent(store, "a2") is None, "it takes no more"


async def test_drain_repeats(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await drain(store)
    before = await read_worker(store)
    async with listening(store, store.keys.worker_channel("w1")) as heard:
        assert await drain(store)
        assert await read_commands(heard) == [Drain(process_id="w1")]
    assert await read_worker(store) == before
    assert (await read_events(store)).count("worker.draining") == 1


async def test_drain_of_what_is_not_there_is_refused(store: Store) -> None:
    await seed_pool(store)
    with pytest.raises(UnknownWorker):
        await drain(store)
    await seed_order(store, "w1")
    with pytest.raises(InvalidInput, match="still starting"):
        await drain(store)
    await store.connection.redis.hset(store.keys.process("w1"), "status", "lost")
    with pytest.raises(UnknownWorker):
        await drain(store)


async def test_only_an_idle_worker_is_let_go_when_asked_so(store: Store) -> None:
    await seed_pool(store, min_workers=1)
    await store.pools.scale("p", 3)
    await seed_worker(store)
    await seed_running_agent(store)
    assert not await drain(store, only_idle=True)
    await store.agents.terminate("p/a1")
    await seed_task(store)
    await exchange(store, room=1)
    assert not await drain(store, only_idle=True)
    assert (await store.pools.info("p")).desired == 3
    await finish(store)
    assert await drain(store, only_idle=True)
    assert await drain(store, only_idle=True)
    assert (await store.pools.info("p")).desired == 2, "counted once"


async def test_tasks_are_not_claimed_while_draining(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, "t1", agent="a1")
    await seed_task(store, "t2")
    await drain(store)
    claim = await exchange(store, room=5, names=["a1"])
    assert claim.tasks == ()


# -- release_agent ----------------------------------------------------------------------------------------------


async def release(store: Store, worker: str = "w1", name: str = "a1", later: int = 0, snapshot: str = "") -> str:
    number = await incarnation(store) + later
    return await store.agents.release("p", worker, name, number, snapshot)


async def test_agent_moves_with_its_snapshot_and_a_new_incarnation(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_running_agent(store)
    await seed_worker(store, "w2")
    await drain(store)
    before = await incarnation(store)
    async with listening(store, store.keys.worker_channel("w2")) as heard:
        assert await release(store, snapshot='{"n":1}') == "placed"
        (command,) = await read_commands(heard)
    assert isinstance(command, Spawn)
    assert (command.agent_id, command.process_id) == ("p/a1", "w2")
    assert command.incarnation > before
    agent = await read_agent(store)
    assert (agent["status"], agent["process_id"], agent["incarnation"]) == ("placed", "w2", str(command.incarnation))
    assert await store.agents.snapshot("p", "a1") == '{"n":1}'
    assert (await read_worker(store, "w1"))["agent_count"] == "0"
    assert await read_free(store) == {"w2": 9}
    assert "agent.moved" in await read_events(store)


async def test_agent_waits_when_no_other_worker_has_room(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await drain(store)
    async with listening(store, store.keys.leader_channel("p")) as heard:
        assert await release(store) == "pending"
        assert await read_texts(heard) == ["room wanted"]
    assert (await read_agent(store))["status"] == "pending"
    await seed_worker(store, "w2")
    assert (await read_agent(store))["process_id"] == "w2"


async def test_release_repeats_as_stale(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await drain(store)
    assert await release(store) == "pending"
    assert await release(store, snapshot="late") == "stale"
    assert await store.agents.snapshot("p", "a1") == ""
    assert await release(store, worker="w9") == "stale"
    assert await release(store, name="unknown") == "stale"


async def test_release_of_another_incarnation_is_stale(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await drain(store)
    assert await release(store, later=1) == "stale"
    assert (await read_agent(store))["status"] == "idle"


async def test_busy_agent_is_not_released(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_task(store, agent="a1")
    await exchange(store, names=["a1"])
    await drain(store)
    assert await release(store) == "busy"
    await finish(store, "p/t1", "a1")
    assert await release(store) == "pending"


async def test_fifty_repeats_release_once(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    await seed_worker(store, "w2")
    await drain(store)
    answers = await at_once(50, lambda _: release(store))
    assert sorted(answers) == ["placed"] + ["stale"] * 49
    assert await read_free(store) == {"w2": 9}


# -- retire_worker ----------------------------------------------------------------------------------------------


async def retire(store: Store) -> bool:
    return await store.workers.retire("p", "w1", reason="test")


async def test_empty_worker_leaves_for_good(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await drain(store)
    async with listening(store, store.keys.leader_channel("p")) as heard:
        assert await retire(store)
        assert await read_texts(heard) == ["worker stopped"]
    assert await read_worker(store) == {}
    view = await store.pools.observe("p")
    assert (view.workers, view.draining, view.ready) == (0, 0, 0)
    (record,) = await read_history(store)
    assert (record["kind"], record["id"], record["status"], record["reason"]) == ("worker", "w1", "stopped", "test")
    assert "secret" not in record


async def test_retiring_repeats(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    assert await retire(store)
    assert await retire(store)
    assert (await read_events(store)).count("worker.stopped") == 1
    assert len(await read_history(store)) == 1


async def test_worker_that_holds_something_stays(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_running_agent(store)
    assert not await retire(store)
    await store.agents.terminate("p/a1")
    await seed_task(store)
    await exchange(store, room=1)
    assert not await retire(store)
    await finish(store)
    assert await retire(store)


async def test_worker_that_is_being_reaped_does_not_retire(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await store.connection.redis.hset(store.keys.process("w1"), "status", "lost")
    assert await retire(store), "it is gone, so nothing keeps its process"
    assert await read_worker(store) != {}


async def test_worker_that_never_registered_does_not_retire(store: Store) -> None:
    """From `ordered` and `starting` the table allows only `lost`: such an order is reaped."""
    await seed_pool(store)
    await seed_order(store, "w1")
    assert await retire(store)
    assert (await read_worker(store))["status"] == "ordered"
    assert (await store.pools.observe("p")).starting == 1
