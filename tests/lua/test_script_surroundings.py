"""What scripts work under: a user who may not publish, a namespace, another database, full memory, a flushed cache."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from support.seeds import (
    LONG_MS,
    MASTER,
    exchange,
    failure,
    finish,
    ids,
    incarnation,
    listening,
    new_store,
    read_agent,
    read_commands,
    read_free,
    read_replies,
    read_texts,
    seed_agent,
    seed_leader,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)
from support.server import start_server

from agentpool.errors import RedisUnavailable
from agentpool.protocol.keys import Keys
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.scripts import LIBRARY_PREFIX, library
from agentpool.store.workers import beat_worker


def as_user(url: str, user: str, password: str, db: int = 0) -> str:
    return f"unix://{user}:{password}@{urlsplit(url).path}?db={db}"


async def live(store: Store) -> None:
    """Go through a whole life, with every kind of script."""
    token = await seed_pool(store)
    await seed_worker(store, "w1", capacity=3)
    for name in ("a1", "a2", "a3", "a4"):
        await seed_agent(store, name)
    for name in ("a1", "a2", "a3"):
        assert await store.agents.confirm("p", "w1", name, await incarnation(store, name)) == 0
    await seed_task(store, "t1", agent="a1")
    await seed_task(store, "t2", agent="a2")
    claim = await exchange(store, room=5, names=["a1", "a2"])
    assert len(claim.tasks) == 2
    assert await store.tasks.cancel("p/t1") == "asked"
    assert (await finish(store, "p/t1", "a1")).stale == ()
    await store.agents.beat("p", "w1", ["a1"])
    await store.agents.terminate("p/a1")
    assert (await read_agent(store, "a4"))["process_id"] == "w1"
    assert await store.agents.fail("p", "w1", "a4", await incarnation(store, "a4"), failures=9, error="no", final=True)
    await seed_worker(store, "w2", capacity=2)
    await seed_task(store, "t3")
    claim = await exchange(store, "w2", room=5)
    assert [task.id for task in claim.tasks] == ["p/t3"]
    await finish(store, "p/t3", worker="w2", result=failure())
    await store.workers.drain("p", "w1", reason="test")
    assert await store.agents.release("p", "w1", "a3", await incarnation(store, "a3"), "{}") == "placed"
    assert await store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="test") == "done"
    assert (await store.tasks.info("p/t2"))["status"] == "queued"
    assert await store.agents.place_pending("p", token) == (0, 0, -1)
    assert (await read_agent(store, "a2"))["process_id"] == "w2"
    await more_of_life(store)
    await store.pools.scale("p", 2)
    assert await store.pools.update("p", token, "desired", 2)
    for name in ("a2", "a3"):
        await store.agents.terminate(f"p/{name}")
    await store.workers.drain("p", "w2", reason="test", only_idle=True)
    assert await store.workers.view("p", "w2")
    assert await store.workers.retire("p", "w2", reason="test")
    stats = await store.pools.stats("p", await store.workers.all("p"))
    assert (stats.process_count, stats.agent_count, stats.queued_tasks, stats.running_tasks) == (0, 0, 0, 0)
    assert await store.locks.release("p", "leader", token)


async def more_of_life(store: Store) -> None:
    """Retries, timers, dead letters, followers, limits: on worker w2, which has no room for more agents."""
    await seed_worker(store, "w3")
    task = await seed_lease(store, "r1", "w3", key="digest", digest="input", expires=LONG_MS)
    await store.tasks.follow(task)
    await store.tasks.report("p", "w3", [(task, b"1")])
    await finish(store, task, worker="w3", verdict="retry", delay_ms=1)
    await asyncio.sleep(0.005)
    assert await store.tasks.fire_timers("p") > 0
    assert ids(await exchange(store, "w3", room=1)) == [task]
    assert ids(await finish(store, task, worker="w3", verdict="dead")) == []
    again = await store.letters.replay(task)
    assert ids(await exchange(store, "w3", room=1)) == [again]
    await finish(store, again, worker="w3", verdict="dead")
    assert await store.letters.purge([again]) == 1
    await store.tenants.limit("p", "default", {"running": 1})
    await store.tenants.limit("p", "default", {"running": None})
    parent = await seed_lease(store, "r2", "w3")
    child = await seed_lease(store, "r3", "w3", lane="child", parent=parent)
    for id in (child, parent):
        await finish(store, id, worker="w3")
    await store.workers.drain("p", "w3", reason="test")
    assert await store.workers.retire("p", "w3", reason="test")


# -- users ------------------------------------------------------------------------------------------------------


@pytest.fixture
def muted_url(redis_url: str) -> Iterator[str]:
    """URL of a user who may do everything with keys and nothing with channels."""
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "muted", "on", ">secret", "~*", "resetchannels", "+@all")
        yield as_user(redis_url, "muted", "secret")
        admin.execute_command("ACL", "DELUSER", "muted")


async def test_everything_works_for_a_user_who_may_not_publish(muted_url: str, store: Store) -> None:
    async with new_store(muted_url) as muted, listening(store, store.keys.pool_channel("p")) as heard:
        await live(muted)
        assert await read_texts(heard) == []


async def test_scripts_keep_to_the_prefixes_of_their_keys(redis_url: str) -> None:
    """A user who is limited to the documented prefixes is enough: nothing else is touched."""
    prefixes = ("pools", "install", "pool:*", "process:*", "agent:*", "task:*", "tenant:*", "lock:*")
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "narrow", "on", ">secret", *(f"~{p}" for p in prefixes), "allchannels", "+@all", "-keys"
        )
        try:
            async with new_store(as_user(redis_url, "narrow", "secret")) as narrow:
                await live(narrow)
        finally:
            admin.execute_command("ACL", "DELUSER", "narrow")


# -- names ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def elsewhere(redis_url: str) -> AsyncIterator[Store]:
    async with new_store(f"{redis_url}?db=2", namespace="x") as store:
        yield store


async def test_everything_works_in_a_namespace_and_another_database(elsewhere: Store, store: Store) -> None:
    await live(elsewhere)
    keys = await elsewhere.connection.redis.keys("*")
    assert keys
    assert all(key.startswith("x:") for key in keys)
    assert await store.connection.redis.dbsize() == 0


async def test_channels_carry_namespace_and_database(elsewhere: Store) -> None:
    keys = elsewhere.keys
    assert keys == Keys("x", 2)
    assert keys.worker_channel("w1") == "x:db2:worker:w1:commands"
    async with (
        listening(elsewhere, "x:db2:worker:w1:commands", "x:db2:pool:p:commands") as commands,
        listening(elsewhere, "x:db2:client:c:replies") as replies,
        listening(elsewhere, "worker:w1:commands", "x:worker:w1:commands") as others,
    ):
        await seed_pool(elsewhere)
        await seed_worker(elsewhere)
        await seed_running_agent(elsewhere)
        assert len(await read_commands(commands)) == 2
        assert len(await read_replies(replies)) == 1
        assert await read_texts(others) == []
    assert await elsewhere.connection.redis.zscore("x:pool:p:processes", "w1") == 9


async def test_two_namespaces_know_nothing_of_each_other(redis_url: str, store: Store) -> None:
    async with new_store(redis_url, namespace="y") as other:
        for each in (store, other):
            await seed_pool(each)
            await seed_worker(each)
            await seed_agent(each)
        await store.agents.terminate("p/a1")
        assert await read_free(other) == {"w1": 9}
        assert await read_free(store) == {"w1": 10}


async def test_a_threads_connection_finds_the_same_names(redis_url: str, elsewhere: Store) -> None:
    await seed_pool(elsewhere)
    await seed_worker(elsewhere)
    connection = SyncConnection(f"{redis_url}?db=2", namespace="x")
    try:
        assert connection.keys == elsewhere.keys
        assert beat_worker(connection, "p", "w1", loop_lag_ms=0, memory_bytes=None, cpu_percent=0.0)
    finally:
        connection.close()


# -- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_library", [True, False])
async def test_when_memory_is_full_work_ends_but_none_begins(tmp_path: Path, has_library: bool) -> None:
    server = start_server(tmp_path)
    try:
        async with new_store(server.url) as store:
            token = await seed_pool(store)
            await seed_worker(store, "w1")
            await seed_worker(store, "w2")
            for name in ("a1", "a2", "a3", "a4"):
                await seed_running_agent(store, name)
            for i in range(4):
                await seed_task(store, f"t{i}")
            await seed_task(store, "m", agent="a1")
            await exchange(store, room=1)
            for id, worker in (("x1", "w2"), ("x2", "w2")):
                await seed_task(store, id, tenant="first")
                await exchange(store, worker, room=1)
            leases = await store.connection.redis.hgetall(store.keys.leases("p"))
            dead = next(task for task, words in leases.items() if words.startswith("w2 "))
            await finish(store, dead, worker="w2", verdict="dead")
            await seed_task(store, "later", delay=1)
            await asyncio.sleep(0.005)
            await store.connection.redis.config_set("maxmemory", 1)
            if not has_library:
                await store.connection.redis.function_flush()  # and none can be loaded any more
            for new in (
                seed_agent(store, "a9"),
                seed_task(store, "t9"),
                store.tasks.follow("p/t0"),
                store.tasks.report("p", "w1", [("p/t0", b"1")]),
                store.letters.replay(dead),
                store.tenants.limit("p", "acme", {"running": 1}),
            ):
                with pytest.raises(RedisUnavailable, match="out of memory"):
                    await new
            assert await seed_leader(store) == token
            assert await store.locks.take("p", "placement", "m", lease_ms=1000)
            claim = await exchange(store, "w2", room=1)
            assert len(claim.tasks) == 1
            assert await store.tasks.fire_timers("p") == -1
            assert (await store.tasks.info("p/later"))["status"] == "queued"
            assert await store.letters.purge([dead]) == 1
            assert (await finish(store, "p/t0")).stale == ()
            assert await store.tasks.cancel("p/t2") == "cancelled"
            await store.agents.terminate("p/a1")
            holder = (await store.agents.get("p/a2")).process_id
            assert await store.agents.fail(
                "p", holder, "a2", await incarnation(store, "a2"), failures=1, error="no", final=True
            )
            connection = SyncConnection(server.url)
            assert beat_worker(connection, "p", "w1", loop_lag_ms=0, memory_bytes=1, cpu_percent=0.0)
            connection.close()
            holder = (await store.agents.get("p/a3")).process_id
            await store.workers.drain("p", holder, reason="test")
            assert await store.agents.release("p", holder, "a3", await incarnation(store, "a3"), "{}") == "placed"
            for worker in ("w1", "w2"):
                assert await store.workers.reap("p", worker, proof="owner", authority=MASTER, reason="x") == "done"
            assert (await store.pools.observe("p")).pending == 2
            assert bool(await loaded(store)) is has_library
    finally:
        server.stop()


# -- the library of scripts -------------------------------------------------------------------------------------------


async def test_scripts_are_loaded_again_after_a_flush(redis_url: str, store: Store) -> None:
    connection = SyncConnection(redis_url)
    try:
        for _ in range(2):
            await store.connection.redis.function_flush()
            await seed_pool(store)
            await store.connection.redis.function_flush()
            assert beat_worker(connection, "p", "w1", loop_lag_ms=0, memory_bytes=None, cpu_percent=0) is None
        assert await loaded(store) == {library().name}, "once is enough"
    finally:
        connection.close()


async def test_scripts_are_loaded_once_for_all_who_miss_them(redis_url: str, store: Store) -> None:
    redis = store.connection.redis
    await redis.function_flush()
    await redis.config_resetstat()
    async with new_store(redis_url) as other:
        await asyncio.gather(*(each.workers.view("p", "w1") for each in [store, other] * 100))
    stats = await redis.info("commandstats")
    assert stats["cmdstat_function|load"]["calls"] <= 2, "once for each connection at most"
    assert await loaded(store) == {library().name}


async def test_scripts_of_other_releases_are_dropped_when_asked(store: Store) -> None:
    redis = store.connection.redis
    for name in (f"{LIBRARY_PREFIX}old", "somebody_elses"):
        code = f"redis.register_function('{name}_f', function() return 1 end)"
        await redis.function_load(f"#!lua name={name}\n{code}", replace=True)
    await seed_pool(store)
    assert await loaded(store) == {library().name, f"{LIBRARY_PREFIX}old", "somebody_elses"}
    for _ in range(2):
        await store.connection.forget_old_scripts()
        assert await loaded(store) == {library().name, "somebody_elses"}
    await redis.function_delete("somebody_elses")


async def test_when_memory_is_full_scripts_of_other_releases_stay(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    try:
        async with new_store(server.url) as store:
            redis = store.connection.redis
            code = "redis.register_function('old_f', function() return 1 end)"
            await redis.function_load(f"#!lua name={LIBRARY_PREFIX}old\n{code}")
            await redis.config_set("maxmemory", 1)
            await store.connection.forget_old_scripts()
            assert await loaded(store) == {f"{LIBRARY_PREFIX}old"}, "who needs them could not load them again"
            await redis.config_set("maxmemory", 0)
            await store.connection.forget_old_scripts()
            assert await loaded(store) == {library().name}
    finally:
        server.stop()


async def loaded(store: Store) -> set[str]:
    listed = await store.connection.redis.execute_command("FUNCTION", "LIST")
    return {dict(zip(fields[::2], fields[1::2], strict=True))["library_name"] for fields in listed}
