"""What a client asked of Redis and Redis lost with its latest writes is asked again, once, with the same ids."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.outage import HarmedServer
from support.tiny_pool import POOL, TinyPool, tiny_pool
from support.wait import wait_until

from agentpool.client import Client, connect, recovering
from agentpool.client.kinds import Kind
from agentpool.client.recovering import Recovery
from agentpool.client.requests import Request, Spawn, new_request
from agentpool.errors import UnknownTask


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HarmedServer]:
    harmed = HarmedServer(tmp_path / "redis").start()
    yield harmed
    harmed.stop()


@pytest.fixture
async def tiny(server: HarmedServer) -> AsyncIterator[TinyPool]:
    async with tiny_pool(server.url) as pool:
        yield pool


@pytest.fixture
async def client(server: HarmedServer, tiny: TinyPool) -> AsyncIterator[Client]:
    async with connect(server.url) as client:
        yield client


def lose(server: HarmedServer) -> None:
    server.lose()
    server.start()


async def test_tasks_that_were_lost_are_handed_in_again_once(
    server: HarmedServer, tiny: TinyPool, client: Client
) -> None:
    pool = client.pool(POOL)
    early = await pool.submit("Echo", "early")
    server.remember()
    waiting = asyncio.create_task(pool.run("Echo", "run"))
    handles = await pool.submit_many("Echo", range(250))
    keyed = await pool.submit("Echo", "keyed", key="k")
    await wait_until(lambda: _queued(tiny, 253))
    lose(server)
    await wait_until(lambda: _queued(tiny, 253), message=lambda: "what was lost did not come back")
    ran: list[object] = []

    async def note(input: object) -> object:
        ran.append(input)
        return input

    await tiny.add_worker("w1", handler=note)
    assert await waiting == "run"
    assert await asyncio.gather(*(handle.result(10) for handle in handles)) == list(range(250))
    assert (await early.result(5), await keyed.result(5)) == ("early", "keyed")
    assert len(ran) == 253, "each ran once"


async def _queued(tiny: TinyPool, count: int) -> bool:
    return (await tiny.store.pools.observe(tiny.name)).waiting_tasks == count


async def test_an_agent_that_was_asked_for_is_asked_for_again(
    server: HarmedServer, tiny: TinyPool, client: Client
) -> None:
    pool = client.pool(POOL)
    first = asyncio.create_task(pool.spawn("Echo", id="first"))
    await wait_until(lambda: _pending(tiny, 1))
    server.remember()
    spawning = asyncio.create_task(pool.spawn("Echo", id="a", tenant="acme"))
    await wait_until(lambda: tiny.store.agents.names(POOL))
    await wait_until(lambda: _pending(tiny, 2))
    lose(server)
    assert await tiny.store.agents.names(POOL) == ["first"]
    await wait_until(lambda: _pending(tiny, 2))
    await tiny.add_worker("w1")
    assert (await spawning).id == f"{POOL}/a"
    assert (await first).id == f"{POOL}/first"
    assert (await pool.agent("a").info()).tenant == "acme"


async def _pending(tiny: TinyPool, count: int) -> bool:
    return (await tiny.store.pools.observe(tiny.name)).pending == count


async def test_what_a_key_named_already_is_not_handed_in_again(
    server: HarmedServer, tiny: TinyPool, client: Client
) -> None:
    pool = client.pool(POOL)
    await tiny.add_worker("w1")
    first = await pool.submit("Echo", "keyed", key="k")
    assert await first.result(5) == "keyed"
    assert (await pool.submit("Echo", "keyed", key="k")).id == first.id
    redis = tiny.store.connection.redis
    keys = await redis.keys(f"pool:{POOL}:key:*")
    assert await redis.delete(*keys) == 1, "its time is over"
    await tiny.workers[0].stop()
    run = await tiny.store.connection.server_run()
    server.stop()
    server.start()
    recovery = client.backend.replies.recovery
    await wait_until(lambda: recovery.run != run and not recovery.is_behind)
    assert await _queued(tiny, 0)


async def test_while_the_pool_is_unknown_after_a_restart_what_is_submitted_waits_for_it(
    server: HarmedServer, tiny: TinyPool, client: Client
) -> None:
    pool = client.pool(POOL)
    server.lose_everything()
    server.start()
    submitting = asyncio.create_task(pool.submit_many("Echo", range(150)))
    await asyncio.sleep(0.5)
    assert not submitting.done()
    await tiny.open("Echo")
    handles = await submitting
    await tiny.add_worker("w1")
    assert await asyncio.gather(*(handle.result(10) for handle in handles)) == list(range(150)), "none was withdrawn"


async def test_what_another_client_handed_in_is_unknown_and_said_so(
    server: HarmedServer, tiny: TinyPool, client: Client
) -> None:
    server.remember()
    async with connect(server.url) as other:
        handle = await other.pool(POOL).submit("Echo", 1)
    lose(server)
    with pytest.raises(UnknownTask):
        await client.backend.outcome(handle.id, 5)


async def test_what_comes_while_it_is_looked_up_what_is_known_is_handed_in_too(
    tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[str] = []

    async def note(asked: Request | Spawn) -> None:
        assert isinstance(asked, Request)
        handed.append(asked.task_id)

    monkeypatch.setattr(recovering, "HOLD_S", 0.0)
    recovery = Recovery(tiny.store, note, note, lambda _, error: None)
    early, late = (new_request(POOL, Kind("Echo"), number) for number in range(2))
    settled, gates = tiny.store.tasks.settled, [first := asyncio.Event(), second := asyncio.Event()]

    async def settled_slowly(ids: list[str]) -> list[str]:
        await gates.pop(0).wait()
        return await settled(ids)

    monkeypatch.setattr(tiny.store.tasks, "settled", settled_slowly)
    looks = []
    for request, left in ((early, 1), (late, 0)):
        recovery.wait_for(request.task_id, request)
        recovery.run = f"an earlier run, before {request.task_id}"
        looks.append(asyncio.create_task(recovery.look()))
        await wait_until(lambda left=left: len(gates) == left)
    first.set()
    await looks[0]
    second.set()
    await looks[1]
    assert {*handed} == {early.task_id, late.task_id}
    assert not recovery.is_behind


async def test_of_what_was_accepted_only_so_much_is_kept_and_only_for_a_while(
    tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(asked: Request | Spawn) -> None:
        pass

    async def lost() -> int:
        """How many tasks would be handed in again, if the server had started anew."""
        monkeypatch.setattr(recovering, "HOLD_S", 60.0)
        recovery.run = "an earlier run"
        await recovery.look()
        return sum(recovery.expects(request.task_id) for request in requests)

    for name, bound in {"KEPT_TASKS": 40, "BATCH_TASKS": 10, "KEPT_BYTES": 3000, "BATCH_BYTES": 600}.items():
        monkeypatch.setattr(recovering, name, bound)
    requests = [new_request(POOL, Kind("Echo"), "x" * 10) for _ in range(95)]
    recovery = Recovery(tiny.store, nothing, nothing, lambda _, error: None)
    for request in requests:
        recovery.keep([request])
    assert await lost() == 35  # those before the last five went by tens
    recovery = Recovery(tiny.store, nothing, nothing, lambda _, error: None)
    requests = [new_request(POOL, Kind("Echo"), "x" * 298) for _ in range(21)]
    for request in requests:
        recovery.keep([request])
    assert await lost() == 9  # 3000 bytes are ten, and those before the last one went by twos
    recovery = Recovery(tiny.store, nothing, nothing, lambda _, error: None)
    recovery.keep(requests[:5])
    recovery.forget_old()
    assert await lost() == 5
    monkeypatch.setattr(recovering, "KEPT_S", 0.0)
    recovery = Recovery(tiny.store, nothing, nothing, lambda _, error: None)
    recovery.keep(requests[:5])
    recovery.forget_old()
    assert await lost() == 0


async def test_what_one_run_of_the_server_took_is_handed_in_to_the_next(
    tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    runs, is_taken, looked_up = ["first", "second", "third"], asyncio.Event(), asyncio.Event()

    async def take(asked: Request | Spawn) -> None:
        taken.append(recovery.run)
        if recovery.run == "second":
            await is_taken.wait()

    async def server_run() -> str:
        return runs.pop(0)

    async def settled(ids: list[str]) -> list[str]:
        if recovery.run == "third":
            await looked_up.wait()
        return ids

    monkeypatch.setattr(recovering, "HOLD_S", 0.0)
    recovery = Recovery(tiny.store, take, take, lambda _, error: None)
    monkeypatch.setattr(tiny.store.connection, "server_run", server_run)
    monkeypatch.setattr(tiny.store.tasks, "settled", settled)
    request = new_request(POOL, Kind("Echo"), 1)
    recovery.wait_for(request.task_id, request)
    await recovery.look()
    assert recovery.run == "first"
    looks = [asyncio.create_task(recovery.look())]
    await wait_until(lambda: taken == ["second"])
    looks.append(asyncio.create_task(recovery.look()))
    await wait_until(lambda: recovery.run == "third")
    is_taken.set()
    await looks[0]
    looked_up.set()
    await looks[1]
    assert taken == ["second", "third"]
    assert not recovery.is_behind


async def test_without_a_restart_nothing_is_handed_in_twice(tiny: TinyPool, client: Client) -> None:
    pool = client.pool(POOL)
    handle = await pool.submit("Echo", 1)
    await tiny.store.connection.redis.delete(tiny.store.keys.task(handle.id))
    with pytest.raises(UnknownTask):
        await handle.result(5)
