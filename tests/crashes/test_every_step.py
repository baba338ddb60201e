"""Whoever does something in several steps is cut off between any two of them, and a fresh one takes over.

How many steps there are is counted: the actor does its work once through a door that counts its calls. Then, for each
number of calls, everything begins anew, the door closes for good after so many, and the actor's coroutine is cancelled:
what it had not yet asked for never happens. Reads change nothing, so to die before or after one is the same, and so
it is with what only says again that its caller lives. A fresh actor, with nothing but what stands in Redis, then
completes the work or undoes it, and doctor finds nothing. (Real masters die by SIGKILL in tests/system.)
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.cutting import Cutter, cutting
from support.one_master import OneMaster, Processes
from support.seeds import (
    MASTER,
    ended,
    exchange,
    failure,
    ids,
    incarnation,
    new_store,
    read_agent,
    read_events,
    seed_agent,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)
from support.server import flush

from agentpool.client.client import RedisClient
from agentpool.doctor import examine
from agentpool.errors import AgentPoolError
from agentpool.store import Store

LUA = Path(__file__).parents[2] / "agentpool" / "store" / "lua"
READS = {
    *(path.stem for path in LUA.glob("*.lua") if "@flags no-writes" in path.read_text()),
    "GET", "HGET", "HGETALL", "HMGET", "ZRANGE", "ZRANGEBYSCORE", "SMEMBERS", "XRANGE", "TIME", "SUBSCRIBE", "PING",
    "EXISTS", "UNSUBSCRIBE",
}  # fmt: skip
SIGNS_OF_LIFE = {"lead_pool", "report_host", "beat_worker"}

CAPACITY = 2
MANY = 230


class World:
    """What an operation begins with, and what its actors leave."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.processes = Processes(store, CAPACITY)
        self.masters: list[OneMaster] = []

    def master(self, store: Store, name: str = "h1", types: str = "1", **settings: object) -> OneMaster:
        master = OneMaster(store, self.processes, self.folder, name, types, **settings)
        self.masters.append(master)
        return master

    async def lapse(self) -> None:
        """The time of the dead leader's locks is over."""
        keys = self.store.keys
        await self.store.connection.redis.delete(keys.leader_lock("p"), keys.placement_lock("p"))

    async def agents(self) -> dict[str, tuple[str, str]]:
        return {record.agent_id[2:]: (record.status, record.process_id) for record in await self.store.agents.all("p")}

    def close(self) -> None:
        for master in self.masters:
            master.close()
        self.processes.close()


class Operation:
    """Something of several steps. `act` goes through the door."""

    async def prepare(self, world: World) -> None:
        """Set the stage."""

    async def act(self, world: World, store: Store) -> None:
        """Do it."""
        raise NotImplementedError

    async def recover(self, world: World) -> None:
        """What a fresh actor does."""

    async def check(self, world: World) -> None:
        """It is complete, or as if it had never begun."""


class StartWorkers(Operation):
    """Leader elected → settings applied → ordered → forked → registered → written down → agents placed."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await world.lapse()
        for name in ("a1", "a2", "a3"):
            await seed_agent(world.store, name)

    async def act(self, world: World, store: Store) -> None:
        master = world.master(store)
        await master.open()
        await master.turn()

    async def recover(self, world: World) -> None:
        await world.store.connection.redis.delete(world.store.keys.placement_lock("p"))
        master = world.master(world.store)
        await master.open()
        for _ in range(3):
            await master.turn()

    async def check(self, world: World) -> None:
        assert {status for status, _ in (await world.agents()).values()} == {"placed"}
        workers = await world.store.workers.all("p")
        assert [worker.status for worker in workers] == ["ready", "ready"]
        assert {worker.process_id for worker in workers} == set(world.processes.running), "nothing forked is forgotten"


class ReplaceTypes(Operation):
    """Workers with other agent types are replaced one by one, a new one before each old one."""

    async def prepare(self, world: World) -> None:
        old = world.master(world.store)
        await seed_pool(world.store)
        await seed_agent(world.store, "a1")
        await world.lapse()
        await old.open()
        await old.turn()
        assert len(world.processes.running) == 1
        old.close()

    async def act(self, world: World, store: Store) -> None:
        await self._renew(world, world.master(store, types="2"))

    async def recover(self, world: World) -> None:
        await world.store.connection.redis.delete(world.store.keys.placement_lock("p"))
        await self._renew(world, world.master(world.store, types="2"))

    async def _renew(self, world: World, master: OneMaster) -> None:
        await master.open()
        for _ in range(12):
            await master.turn()
            workers = await world.store.workers.all("p")
            if {worker.types_hash for worker in workers} == {"2"} and not await self._is_renewing(world):
                return
            for worker in workers:
                if worker.status == "draining":
                    await world.processes.leave(worker.process_id)
                    await asyncio.sleep(0.03)  # its pidfd tells

    async def _is_renewing(self, world: World) -> bool:
        return bool((await world.store.pools.info("p")).renewing)

    async def check(self, world: World) -> None:
        workers = await world.store.workers.all("p")
        assert [(worker.status, worker.types_hash) for worker in workers] == [("ready", "2")]
        assert not await self._is_renewing(world)
        assert {status for status, _ in (await world.agents()).values()} == {"placed"}


class Drain(Operation):
    """A worker hands its agents over one by one and retires; should it die over that, its master reaps it."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await seed_worker(world.store, "w1", capacity=3)
        for name in ("a1", "a2", "a3"):
            await seed_running_agent(world.store, name)
        await seed_worker(world.store, "w2", capacity=2)

    async def act(self, world: World, store: Store) -> None:
        await store.workers.drain("p", "w1", reason="test")
        view = await store.workers.view("p", "w1")
        for agent in view.agents if view else ():
            await store.agents.release("p", "w1", agent.agent_id[2:], agent.incarnation, "{}")
        await store.workers.retire("p", "w1", reason="test")

    async def recover(self, world: World) -> None:
        await world.store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="killed")

    async def check(self, world: World) -> None:
        agents = await world.agents()
        assert sorted(owner for _, owner in agents.values()) == ["", "w2", "w2"]
        assert [worker.process_id for worker in await world.store.workers.all("p")] == ["w2"]


class Reap(Operation):
    """A dead worker held more than one call may move; another leader finishes it."""

    async def prepare(self, world: World) -> None:
        store = world.store
        await seed_pool(store, max_workers=3)
        await seed_worker(store, "w1", capacity=400)
        await asyncio.gather(*(seed_running_agent(store, f"a{number}") for number in range(120)))
        await asyncio.gather(*(seed_task(store, f"t{number}") for number in range(MANY)))
        while ids(await exchange(store, room=100)):
            pass

    async def act(self, world: World, store: Store) -> None:
        await store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="killed")

    async def recover(self, world: World) -> None:
        await world.lapse()
        master = world.master(world.store, "h2", max_workers=0, min_workers=0)
        await master.leadership.lead_once()
        if await world.store.workers.lost("p"):
            await master.reaper.finish_lost_workers()
        else:  # it was not fenced, or is done already: its own master does it again
            await world.store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="killed")

    async def check(self, world: World) -> None:
        assert set((await world.agents()).values()) == {("pending", "")}
        view = await world.store.pools.observe("p")
        assert (view.workers, view.lost, view.pending, view.waiting_tasks, view.running_tasks) == (0, 0, 120, MANY, 0)
        assert (await read_events(world.store)).count("worker.lost") == 1


class Terminate(Operation):
    """An agent with much mail ends; whoever asked for it asks again."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await seed_worker(world.store)
        await seed_running_agent(world.store, "a1")
        await asyncio.gather(*(seed_task(world.store, f"t{number}", agent="a1") for number in range(MANY)))

    async def act(self, world: World, store: Store) -> None:
        await store.agents.terminate("p/a1")

    async def recover(self, world: World) -> None:
        assert await examine(world.store, local=False) == [], "half of it is done, and all of that fits together"
        await self.act(world, world.store)

    async def check(self, world: World) -> None:
        assert await world.agents() == {}
        outcomes = [await world.store.tasks.read(f"p/t{number}") for number in range(MANY)]
        assert {outcome.status for outcome in outcomes if outcome} == {"agent_terminated"}
        assert None not in outcomes


class Lead(Operation):
    """A master leads, applies the pool's settings, and hands over; another goes on."""

    async def act(self, world: World, store: Store) -> None:
        master = world.master(store)
        await master.open()
        await master.leadership.resign()

    async def recover(self, world: World) -> None:
        held = await world.store.locks.leader("p")
        if held:
            await world.lapse()
        second = world.master(world.store, "h2")
        await second.open()
        assert second.scope.token
        self.leader = second.scope.master

    async def check(self, world: World) -> None:
        assert await world.store.pools.names() == ["p"]
        info = await world.store.pools.info("p")
        assert (info.leader, info.max_workers, info.status) == (self.leader, 3, "active")


class Remove(Operation):
    """A pool goes out of service."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)

    async def act(self, world: World, store: Store) -> None:
        lead = await store.locks.lead("p", MASTER, lease_ms=5000, gap_ms=2000, hold_ms=0)
        await store.pools.remove("p", lead.token)
        await store.locks.release("p", "leader", lead.token)

    async def recover(self, world: World) -> None:
        await self.act(world, world.store)

    async def check(self, world: World) -> None:
        assert await world.store.pools.names() == []
        assert (await world.store.pools.info("p")).status == "removed"
        assert not await world.store.locks.leader("p")


class Submit(Operation):
    """A client hands in some tasks with a key; after its death another does the same, and each task is one."""

    count, key = 5, "batch"

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store, max_queued=10_000)

    async def act(self, world: World, store: Store) -> None:
        client = RedisClient(store)
        options = {"key": self.key} if self.key else {}
        try:
            handles = await client.pool("p").submit_many("R", list(range(self.count)), **options)  # type: ignore[arg-type]
            self.tasks = {handle.id for handle in handles}
        finally:
            await client.close()

    async def recover(self, world: World) -> None:
        async with new_store(world.store.connection.url) as another:
            await self.act(world, another)

    async def check(self, world: World) -> None:
        assert len(self.tasks) == self.count
        assert await run_all(world.store) == self.tasks, "each ran once, and nothing else did"


class SubmitChunks(Submit):
    """Very many tasks without a key go in chunks, each of which is accepted as a whole, or not at all."""

    count, key = MANY, ""

    async def recover(self, world: World) -> None:
        """Nobody knows what the client wanted."""

    async def check(self, world: World) -> None:
        assert len(await run_all(world.store)) in (0, 100, 200, MANY)


async def run_all(store: Store) -> set[str]:
    """Run everything that waits, on a worker that comes only now."""
    await seed_worker(store, capacity=300)
    done = batch = ids(await exchange(store, room=100))
    while batch:
        batch = ids(await exchange(store, room=100, ended=[ended(id) for id in batch]))
        done = done + batch
    assert len(done) == len(set(done))
    return set(done)


class Exchange(Operation):
    """A worker takes tasks and hands them in; should it die, another does what has no outcome yet."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await seed_worker(world.store, "w1", capacity=2)
        for number in range(6):
            await seed_task(world.store, f"t{number}")

    async def act(self, world: World, store: Store) -> None:
        had: list[str] = []
        for number in range(1, 5):
            had = ids(await exchange(store, "w1", number, room=2, ended=[ended(id) for id in had]))

    async def recover(self, world: World) -> None:
        await world.store.workers.reap("p", "w1", proof="owner", authority=MASTER, reason="killed")
        await seed_worker(world.store, "w2", capacity=2)
        had: list[str] = []
        for number in range(1, 6):
            had = ids(await exchange(world.store, "w2", number, room=2, ended=[ended(id) for id in had]))

    async def check(self, world: World) -> None:
        outcomes = [await world.store.tasks.read(f"p/t{number}") for number in range(6)]
        assert all(outcome and outcome.status == "succeeded" for outcome in outcomes)
        lines = [line for _, line in await world.store.audit.read("p")]
        assert "given_back" not in "".join(lines) or len(lines) > 0


class Timers(Operation):
    """More timers are due than one call fires."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await asyncio.gather(*(seed_task(world.store, f"t{number}", delay=1) for number in range(MANY)))
        await asyncio.sleep(0.005)

    async def act(self, world: World, store: Store) -> None:
        await store.tasks.fire_timers("p")

    async def recover(self, world: World) -> None:
        await self.act(world, world.store)

    async def check(self, world: World) -> None:
        view = await world.store.pools.observe("p")
        assert (view.waiting_tasks, view.delayed) == (MANY, 0)


class Audit(Operation):
    """The leader takes the audit to files; what it had written and not forgotten is written again."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await seed_worker(world.store)
        for number in range(5):
            await seed_task(world.store, f"t{number}")
            task = ids(await exchange(world.store, room=1))[0]
            line = msgspec.json.encode({"task_id": task})
            await exchange(world.store, ended=[msgspec.structs.replace(ended(task), audit=line)])

    async def act(self, world: World, store: Store) -> None:
        master = world.master(store)
        master.scope.token = "1 h1"  # reading and trimming are not fenced: files may hold a line twice
        await master.auditor.drain_once()

    async def recover(self, world: World) -> None:
        await self.act(world, world.store)

    async def check(self, world: World) -> None:
        assert await world.store.audit.read("p") == []
        text = "".join(path.read_text() for path in (world.folder / "audit" / "p").glob("*.jsonl"))
        written = [msgspec.json.decode(line)["task_id"] for line in text.splitlines() if "task_id" in line]
        assert set(written) == {f"p/t{number}" for number in range(5)}


class Purge(Operation):
    """Many dead letters are thrown away."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store, max_dead=1000)
        await seed_worker(world.store, capacity=300)
        await asyncio.gather(*(seed_task(world.store, f"t{number}") for number in range(MANY)))
        while batch := ids(await exchange(world.store, room=100)):
            result = failure(status="dead")
            await exchange(world.store, ended=[ended(id, verdict="dead", result=result) for id in batch])

    async def act(self, world: World, store: Store) -> None:
        await store.letters.purge([f"p/t{number}" for number in range(MANY)])

    async def recover(self, world: World) -> None:
        await self.act(world, world.store)

    async def check(self, world: World) -> None:
        assert (await world.store.pools.observe("p")).dead == 0


class Spawn(Operation):
    """A client places an agent, waits for it, and ends it; another finds out what is there and ends it too."""

    async def prepare(self, world: World) -> None:
        await seed_pool(world.store)
        await seed_worker(world.store)

    async def act(self, world: World, store: Store) -> None:
        client = RedisClient(store)
        confirming = asyncio.create_task(self._confirm(world.store))
        try:
            handle = await client.pool("p").spawn("R", id="a1", timeout=2)
            await handle.terminate()
        finally:
            confirming.cancel()
            await client.close()

    async def _confirm(self, store: Store) -> None:
        while not (await read_agent(store)).get("incarnation", "0").strip("0"):
            await asyncio.sleep(0.002)
        await store.agents.confirm("p", "w1", "a1", await incarnation(store, "a1"))

    async def recover(self, world: World) -> None:
        with contextlib.suppress(AgentPoolError):
            await world.store.agents.terminate("p/a1")

    async def check(self, world: World) -> None:
        assert await world.agents() == {}
        assert (await world.store.pools.observe("p")).free_slots == 10


OPERATIONS = [
    StartWorkers, ReplaceTypes, Drain, Reap, Terminate, Lead, Remove, Submit, SubmitChunks, Exchange, Timers, Audit,
    Purge, Spawn,
]  # fmt: skip


@pytest.fixture
async def door(redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[Cutter, str]]:
    async with cutting(redis_url, tmp_path / "door.sock") as found:
        yield found


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentpool.doctor.examining.PAUSE_S", 0.005)
    monkeypatch.setattr("agentpool.store.audit.ENTRIES_PER_CALL", 2)
    monkeypatch.setattr("agentpool.master.auditor.ENTRIES_PER_CALL", 2)


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.__name__)
async def test_a_crash_between_any_two_calls_is_recovered_from(
    kind: type[Operation], door: tuple[Cutter, str], redis_url: str, tmp_path: Path
) -> None:
    cutter, url = door
    calls = await play(kind(), cutter, url, redis_url, tmp_path / "all", None)
    assert len(calls) >= 2, "an operation of one call has no step to die between"
    for limit in steps(calls):
        flush(redis_url)
        done = f"{calls[:limit]}, then died before {calls[limit]}"
        try:
            await play(kind(), cutter, url, redis_url, tmp_path / str(limit), limit)
        except Exception as error:
            raise AssertionError(f"after {done}: {error!r}") from error


def steps(calls: list[str]) -> list[int]:
    """Return after how many calls something may be different from before."""
    changes = [
        number
        for number, name in enumerate(calls)
        if name not in READS and not (name in SIGNS_OF_LIFE and name in calls[:number])
    ]
    return [0, *(number + 1 for number in changes if number + 1 < len(calls))]


async def play(
    operation: Operation, cutter: Cutter, url: str, redis_url: str, folder: Path, limit: int | None
) -> list[str]:
    """Do it, up to `limit` calls, and recover; returns what was called."""
    async with new_store(redis_url) as store:
        world = World(store, folder)
        await store.connection.forget_old_scripts()  # ours are there then
        try:
            await operation.prepare(world)
            calls = await cut_off(lambda actor: operation.act(world, actor), cutter, url, limit)
            await operation.recover(world)
            await operation.check(world)
            assert await examine(store, local=False) == []
        finally:
            world.close()
    return calls


async def cut_off(act: Callable[[Store], Awaitable[None]], cutter: Cutter, url: str, limit: int | None) -> list[str]:
    """Let an actor act until its door closes; returns what it called."""
    actor = Store.open(url)

    async def live() -> None:
        await act(actor)

    acting = asyncio.create_task(live())

    def die() -> None:
        actor.connection.timeout = 0.0  # nothing that it still wants is tried again
        acting.cancel()

    cutter.begin(limit, die)
    outcome: Any = (await asyncio.gather(acting, return_exceptions=True))[0]
    await actor.close()
    if limit is None and isinstance(outcome, BaseException):
        raise outcome
    assert limit is None or cutter.is_shut, f"it made only {cutter.calls}"
    return cutter.calls
