"""follow_task, report_progress: what is written of a task for those who follow it."""

import pytest
from support.seeds import (
    MASTER,
    exchange,
    finish,
    seed_lease,
    seed_pool,
    seed_task,
    seed_worker,
)

from agentpool.errors import UnknownTask
from agentpool.store import Store


async def trail(store: Store, task: str = "p/t1") -> list[str]:
    rows = await store.connection.redis.xrange(store.keys.trail("p", task))
    return [fields["type"] for _, fields in rows]


async def test_states_are_told(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    with pytest.raises(UnknownTask):
        await store.tasks.follow("p/t1")
    await seed_task(store, delay=1000)
    assert await store.tasks.follow("p/t1") == ("delayed", "")
    await seed_task(store, "t2")
    assert await store.tasks.follow("p/t2") == ("queued", "")
    await exchange(store, room=1)
    assert await store.tasks.follow("p/t2") == ("leased", "w1")
    await finish(store, "p/t2")
    assert await store.tasks.follow("p/t2") == ("finished", "")


async def test_each_change_is_written_and_then_nothing_is_kept(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, "w1")
    await seed_task(store)
    await store.tasks.follow("p/t1")
    await exchange(store, room=1)
    await finish(store, verdict="retry", delay_ms=1)
    await store.connection.redis.zadd(store.keys.due("p"), {"start p/t1": 1})
    await store.tasks.fire_timers("p")
    await exchange(store, room=1)
    await store.tasks.report("p", "w1", [("p/t1", b"0.5")])
    await store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="x")
    await seed_worker(store, "w2")
    await exchange(store, "w2", room=1)
    await finish(store, worker="w2")
    assert await trail(store) == [
        "task.started", "task.retried", "task.started", "task.progress", "task.given_back", "task.started",
        "task.finished",
    ]  # fmt: skip
    redis, keys = store.connection.redis, store.keys
    assert await redis.exists(keys.followed("p")) == 0
    assert 0 < await redis.pttl(keys.trail("p", "p/t1")) <= 60_000


async def test_what_nobody_follows_is_not_written(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await finish(store)
    assert await trail(store) == []


async def test_only_the_holder_reports(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store)
    await seed_lease(store)
    await seed_task(store, "t2")
    call = store.connection.call
    words = ["p/t1", "1", "p/t2", "2", "p/unknown", "3"]
    assert await call("report_progress", "p", "w2", *words) == ["ok", 0]
    assert await call("report_progress", "p", "w1", *words) == ["ok", 1]
    assert await trail(store) == ["task.progress"], "though nobody follows it yet"
