"""report_host, forget_host, take_order: who looks after workers, and who starts them."""

import pytest
from support.seeds import (
    MASTER,
    read_events,
    read_hash,
    read_worker,
    seed_agent,
    seed_host,
    seed_leader,
    seed_order,
    seed_pool,
    seed_task,
    seed_worker,
)
from support.wait import wait_until

from agentpool.errors import ConfigError
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.workers import beat_worker, register_worker
from agentpool.version import SCHEMA_VERSION


async def test_a_host_is_recorded_readably_with_its_labels(store: Store) -> None:
    await seed_pool(store)
    await seed_host(store, "h1", ["ssd", "gpu"], cpus=2.5, workers=3)
    view = await store.hosts.view("p")
    host = view.hosts[0]
    assert (host.master, host.host_id, host.labels, host.cpus, host.workers) == ("h1", "h1", "gpu ssd", 2.5, 3)
    assert (host.schema, host.last_beat) == (SCHEMA_VERSION, host.started_at)
    assert view.living(1000) == [host]
    assert await read_hash(store, store.keys.labels("p")) == {"h1": "gpu ssd"}
    await seed_host(store, "h1", ["gpu"])
    assert await read_hash(store, store.keys.labels("p")) == {"h1": "gpu"}
    again = await store.hosts.one("p", "h1")
    assert again
    assert again.started_at == host.started_at
    assert (await read_events(store)).count("host.joined") == 1


async def test_another_process_under_the_same_id_is_refused_while_the_first_beats(store: Store) -> None:
    await seed_host(store, "h1", session="first")
    with pytest.raises(ConfigError, match="two need two identities"):
        await seed_host(store, "h1", session="second")
    assert (await read_hash(store, store.keys.host("p", "h1")))["session"] == "first"
    await store.hosts.report("p", "h1", "second", host_id="h1", labels=[], fields={}, replaces="first")
    with pytest.raises(ConfigError):
        await seed_host(store, "h1", session="first")
    await store.connection.redis.zadd(store.keys.hosts("p"), {"h1": 1})
    await seed_host(store, "h1", session="third")


async def test_a_release_that_is_too_old_is_refused(store: Store) -> None:
    await seed_pool(store)
    newer = {"schema_min": SCHEMA_VERSION + 1, "release": "99.0"}
    await store.connection.redis.hset(store.keys.pool("p"), mapping=newer)
    for ask in (seed_host(store), store.pools.check_release(), store.pools.check_release(["p"])):
        with pytest.raises(ConfigError, match=r"too old. Install release 99\.0 or a later one"):
            await ask
    assert (await store.hosts.view("p")).hosts == ()


async def test_scaling_is_told_with_the_beat(store: Store) -> None:
    await seed_pool(store)
    assert await store.hosts.report("p", "h1", "s", host_id="h1", labels=[], fields={}) == 0
    await store.pools.scale("p", 3)
    assert await store.hosts.report("p", "h1", "s", host_id="h1", labels=[], fields={}) > 0


async def test_a_host_leaves_by_itself_or_is_forgotten_by_the_leader_alone(store: Store) -> None:
    token = await seed_pool(store)
    await seed_host(store, "h1", ["gpu"])
    await seed_host(store, "h2")
    assert await store.hosts.forget("p", "h1")
    assert not await store.hosts.forget("p", "h1"), "gone"
    assert not await store.hosts.forget("p", "h2", token=token, silent_ms=60_000), "alive"
    await store.connection.redis.zadd(store.keys.hosts("p"), {"h2": 1})
    assert not await store.hosts.forget("p", "h2", token="1 other", silent_ms=60_000), "fenced"
    assert await store.hosts.forget("p", "h2", token=token, silent_ms=60_000)
    assert (await store.hosts.view("p")).hosts == ()
    assert await read_hash(store, store.keys.labels("p")) == {}
    assert (await read_events(store)).count("host.left") == 2


# -- orders -----------------------------------------------------------------------------------------------------


async def test_an_order_that_is_taken_has_a_new_secret(store: Store, redis_url: str) -> None:
    await seed_pool(store)
    await seed_order(store, "w1")
    order = (await store.hosts.view("p")).orders[0]
    assert (order.worker, order.master, order.is_begun) == ("w1", MASTER, False)
    assert await store.hosts.take_order("p", "w1", "another", "new") == "gone"
    assert await store.hosts.take_order("p", "w1", MASTER, "new") == "ok"
    thread = SyncConnection(redis_url)
    assert register_worker(thread, "p", "w1", "secret of w1", 10, {"pid": 1}) is None, "what was forked for it before"
    assert await store.workers.start("p", "w1", "new", {"pid": 2})
    assert await store.hosts.take_order("p", "w1", MASTER, "newer") == "begun"
    assert (await store.hosts.view("p")).orders[0].is_begun
    assert register_worker(thread, "p", "w1", "new", 10, {"pid": 2}) is not None
    assert (await read_worker(store))["status"] == "ready"
    assert await store.hosts.take_order("p", "w1", MASTER, "newer") == "begun"
    assert await store.hosts.take_order("p", "w9", MASTER, "newer") == "gone"
    thread.close()


async def test_orders_count_for_a_host_until_it_counts_them_itself(store: Store) -> None:
    await seed_pool(store)
    await seed_host(store, MASTER)
    await seed_order(store, "w1")
    assert (await store.hosts.view("p")).uncounted() == {MASTER: 1}

    async def counted() -> bool:
        await seed_host(store, MASTER)
        return (await store.hosts.view("p")).uncounted() == {}

    await wait_until(counted)


async def test_while_workers_are_renewed_there_may_be_one_more(store: Store) -> None:
    token = await seed_pool(store, max_workers=1)
    await seed_worker(store, "w1")
    async with store.locks.placement("p", MASTER) as placement:
        assert placement

        async def order(worker: str) -> list[str] | None:
            words = {"leader": token, "placement": placement, "master": MASTER, "max_starting": 9}
            return await store.workers.reserve("p", [(worker, "s")], **words)

        assert await order("w2") == []
        assert await store.pools.update("p", token, "renewing", "1")
        assert await order("w2") == ["w2"]
        assert await order("w3") == []


async def test_a_drain_by_a_past_leader_is_refused(store: Store) -> None:
    token = await seed_pool(store)
    await seed_worker(store)
    await store.locks.release("p", "leader", token)
    assert await store.locks.lead("p", "m2", lease_ms=60_000, gap_ms=60_000, hold_ms=0)
    assert not await store.workers.drain("p", "w1", reason="too many", leader=token)
    assert (await read_worker(store))["status"] == "ready"
    assert await store.workers.drain("p", "w1", reason="asked for")


async def test_a_beat_tells_when_the_workers_master_beat_last(store: Store, redis_url: str) -> None:
    await seed_pool(store)
    await seed_leader(store)
    await seed_worker(store)
    thread = SyncConnection(redis_url)

    def master_beat() -> int:
        beat = beat_worker(thread, "p", "w1", loop_lag_ms=0, memory_bytes=None, cpu_percent=0)
        assert beat
        return beat.master_beat

    assert master_beat() == 0
    await seed_host(store, "another")
    assert master_beat() == 0
    await seed_host(store, MASTER)
    host = await store.hosts.one("p", MASTER)
    assert host
    assert master_beat() == host.last_beat
    thread.close()


async def test_what_waits_for_labels_is_told_by_labels(store: Store) -> None:
    await seed_pool(store, types=["R"])
    await seed_host(store, "h1", ["gpu", "ssd"])
    assert await store.pools.demand("p") == {}
    await seed_task(store, "t1")
    await seed_task(store, "t2", lane="normal+gpu")
    await seed_task(store, "t3", lane="urgent+gpu", tenant="acme")
    await seed_task(store, "t4", lane="normal+gpu+ssd")
    await store.connection.redis.hset(store.keys.pool("p"), "labels:R", "ssd")
    for name in ("a1", "a2"):
        assert await seed_agent(store, name) is None
    assert await store.pools.demand("p") == {"gpu": 2, "gpu+ssd": 1, "ssd": 2}
