"""State that outlives the pool: in a file, in Redis, refused when it cannot be used."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis.asyncio
from pool.sample import Counting, ask, check, config, controlled, restore, snapshot, steps
from support.wait import wait_until

from agentpool.errors import RedisUnavailable
from agentpool.pool import AgentPool, FileStorage, RedisStorage, StateRefused
from agentpool.store.connection import Connection


@pytest.fixture
async def redis_storage(redis_url: str) -> AsyncIterator[RedisStorage]:
    connection = Connection(redis_url)
    yield RedisStorage(connection, "saved-pool")
    await connection.close()


async def there_and_back(storage: Any) -> None:
    async with AgentPool(Counting, config()) as pool:
        assert await pool.load_state(storage) == 0
        async with pool.acquire() as first, pool.acquire() as second:
            await first.run(3)
            await second.run(4)
            ids = {first.agent_id: 4, second.agent_id: 5}
            saving = asyncio.create_task(pool.save_state(storage, timeout=5))
            await steps()
            assert not saving.done()
        report = await saving
        assert (set(report.saved), report.busy) == (set(ids), ())
    async with AgentPool(Counting, config(min_size=1)) as pool:
        assert await pool.load_state(storage) == 2
        async with pool.acquire() as first, pool.acquire() as second:
            assert {lease.agent_id: await lease.run(1) for lease in (first, second)} == ids
            assert first.facts().requests == 2
        check(pool)


async def test_state_in_a_file(tmp_path: Path) -> None:
    await there_and_back(FileStorage(tmp_path / "deep" / "pool.json"))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["pool.json"]


async def test_state_in_redis(redis_storage: RedisStorage) -> None:
    await there_and_back(redis_storage)


async def test_a_state_that_cannot_be_used_is_refused_unless_told_to_begin_without(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "pool.json")
    async with AgentPool(Counting, config()) as pool:
        pool.release(await pool.acquire())
        await pool.save_state(storage)
        good = json.loads(storage.path.read_text())
        for change, message in (
            ({"version": 1}, "older"),
            ({"version": 99}, "newer"),
            ({"format": "else"}, "no "),
            ({"sha256": "0" * 64}, "checksum"),
            (None, "damaged"),
        ):
            text = json.dumps(good | change, separators=(",", ":")) if change else storage.path.read_text()[:-20]
            storage.path.write_text(text)
            with pytest.raises(StateRefused, match=message):
                await pool.load_state(storage)
            assert await pool.load_state(storage, start_clean=True) == 0
    async with AgentPool(controlled(), config()) as other:
        storage.path.write_text(json.dumps(good, separators=(",", ":")))
        with pytest.raises(StateRefused, match="type Counting"):
            await other.load_state(storage)


async def test_an_agent_in_use_for_too_long_is_saved_without_its_snapshot(tmp_path: Path) -> None:
    async with AgentPool(Counting, config()) as pool, pool.acquire() as lease:
        report = await pool.save_state(FileStorage(tmp_path / "pool.json"), timeout=0.01)
        assert report.busy == (lease.agent_id,)


@pytest.mark.parametrize("decodes", [False, True])
async def test_state_in_redis_through_a_client_of_the_caller(redis_url: str, decodes: bool) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=decodes)
    storage = RedisStorage(client, "saved-pool")
    try:
        await there_and_back(storage)
        await client.set("saved-pool", b"\xff\xfe")
        async with AgentPool(Counting, config()) as pool:
            with pytest.raises(StateRefused, match="damaged"):
                await pool.load_state(storage)
            assert await pool.load_state(storage, start_clean=True) == 0
            await client.delete("saved-pool")
            await client.lpush("saved-pool", "a list")
            with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
                await pool.load_state(storage, start_clean=True)
    finally:
        await client.aclose()


@pytest.mark.parametrize("listens", [False, True], ids=["away", "silent"])
@pytest.mark.parametrize("kind", ["client", "connection"])
async def test_a_redis_that_does_not_answer(kind: str, listens: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        client: Any = redis.asyncio.Redis.from_url(url) if kind == "client" else Connection(url)
        storage = RedisStorage(client, "saved-pool", timeout=0.3)
        try:
            async with AgentPool(Counting, config()) as pool:
                pool.release(await pool.acquire())
                began = monotonic()
                with pytest.raises(RedisUnavailable):
                    await pool.save_state(storage)
                with pytest.raises(RedisUnavailable):
                    await pool.load_state(storage, start_clean=True)
                assert monotonic() - began < 3
                check(pool)
        finally:
            await (client.aclose() if kind == "client" else client.close())


async def test_counters_come_back(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "pool.json")
    async with AgentPool(Counting, config(recycle_threshold=2, recycle_jitter=0)) as pool:
        async with pool.acquire() as lease, pool.acquire():
            await asyncio.gather(lease.run(1), return_exceptions=True)
            await lease.run(1)
            with pytest.raises(TimeoutError):
                await pool.acquire(timeout=0)
        await wait_until(lambda: pool.metrics().recycles == 1)
        await pool.save_state(storage)
        saved = pool.metrics()
    assert (saved.requests, saved.acquired, saved.released, saved.timed_out, saved.spawned) == (2, 2, 2, 1, 2)
    for _ in range(2):
        async with AgentPool(Counting, config()) as pool:
            await pool.load_state(storage)
            assert await pool.load_state(storage) == 0, "they are here already"
            metrics = pool.metrics()
            assert (metrics.requests, metrics.recycles, metrics.timed_out) == (2, 1, 1)
            assert (metrics.spawned, metrics.terminated, metrics.idle) == (4, 2, 2), "those of the first life ended"
            async with pool.acquire():
                assert (pool.metrics().acquired, pool.metrics().released) == (3, 2)


async def test_saved_agents_wait_for_the_places_of_those_who_make_way(tmp_path: Path) -> None:
    agent = controlled(snapshot=snapshot, restore=restore)
    storage = FileStorage(tmp_path / "pool.json")
    async with AgentPool(agent, config()) as pool:
        async with pool.acquire() as first, pool.acquire() as second:
            ids = {first.agent_id, second.agent_id}
            await asyncio.gather(first.run(1), second.run(1))
        await pool.save_state(storage)
    agent.stop_gate = asyncio.Event()
    async with AgentPool(agent, config(min_size=2, stop_timeout=5)) as pool:
        await pool.warm()
        loading = asyncio.create_task(pool.load_state(storage))
        await wait_until(lambda: pool.leaving == 2)
        waiter = ask(pool)
        await steps(20)
        check(pool)
        assert pool.metrics().starting == 0, "the places are kept for the saved ones"
        agent.stop_gate.set()
        assert await loading == 2
        assert (await waiter).agent_id in ids
        assert {facts.agent_id for facts in pool.agents()} == ids
