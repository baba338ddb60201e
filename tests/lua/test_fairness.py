"""Whose turn it is: tenants by weight in slot time, levels, priorities, and who may go beyond the slots.

A worker is played in virtual time: what it takes holds a slot for as long as a task of that tenant takes.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Mapping
from itertools import groupby

import msgspec
import pytest
from support.seeds import (
    LONG_MS,
    ended,
    exchange,
    finish,
    header,
    ids,
    seed_host,
    seed_lease,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.protocol.tasks import TaskEnvelope
from agentpool.store import Store
from agentpool.store.tasks import EndedTask

ENVELOPE = TaskEnvelope(msgspec.Raw(b"1"))


async def seed_many(store: Store, tenant: str, count: int, *, lane: str = "normal", later_us: int = 0) -> None:
    """Submit `<lane>-<tenant>-<n>` for any agent of the type."""
    many = [(f"p/{lane}-{tenant}-{n}", ENVELOPE) for n in range(count)]
    await store.tasks.submit_many(many, header(tenant=tenant, lane=lane, later_us=later_us))


class Play:
    """A worker with slots, in virtual time."""

    def __init__(self, store: Store, slots: int, run_ms: Mapping[str, float]) -> None:
        self.store, self.slots, self.run_ms = store, slots, run_ms
        self.now = 0.0
        self.running: list[tuple[float, str, str]] = []
        self.slot_ms: Counter[str] = Counter()
        self.taken: list[str] = []

    async def until(self, time: float) -> None:
        """Go on until that time."""
        done: list[EndedTask] = []
        while self.now < time:
            found = await exchange(self.store, room=self.slots - len(self.running), ended=done)
            for task in found.tasks:
                tenant = task.header.tenant
                heapq.heappush(self.running, (self.now + self.run_ms[tenant], task.id, tenant))
                self.taken.append(task.id)
            if not self.running:
                break
            self.now = self.running[0][0]
            done = []
            while self.running and self.running[0][0] <= self.now and len(done) < 50:
                _, task_id, tenant = heapq.heappop(self.running)
                self.slot_ms[tenant] += self.run_ms[tenant]
                done.append(ended(task_id, run_ms=self.run_ms[tenant]))
        if done:
            await exchange(self.store, ended=done)

    def shares(self) -> dict[str, float]:
        """Each tenant's part of the slot time so far; what was counted is forgotten."""
        total = sum(self.slot_ms.values())
        shares = {tenant: self.slot_ms[tenant] / total for tenant in self.run_ms}
        self.slot_ms.clear()
        return shares


async def play(store: Store, run_ms: Mapping[str, float], *, slots: int = 7, **settings: object) -> Play:
    await seed_pool(store, **settings)
    await seed_worker(store, capacity=slots)
    return Play(store, slots, run_ms)


# -- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_ms", [0.5, 10, 300])
async def test_slot_time_is_shared_by_weight(store: Store, run_ms: float) -> None:
    game = await play(store, dict.fromkeys("abc", run_ms))
    for tenant, weight in zip("abc", (1, 2, 4), strict=True):
        await store.tenants.limit("p", tenant, {"weight": weight})
        await seed_many(store, tenant, 1000)
    await game.until(150 * run_ms)
    assert game.shares() == pytest.approx({"a": 1 / 7, "b": 2 / 7, "c": 4 / 7}, rel=0.05)


async def test_who_has_long_tasks_gets_as_much_time_and_fewer_tasks(store: Store) -> None:
    game = await play(store, {"short": 5, "long": 40}, slots=4)
    for tenant in game.run_ms:
        await seed_many(store, tenant, 1000)
    await game.until(800)  # what they take is not known at first
    game.shares()
    await game.until(2000)
    assert game.shares() == pytest.approx({"short": 0.5, "long": 0.5}, rel=0.05)


async def test_one_that_floods_does_not_delay_the_others(store: Store) -> None:
    game = await play(store, {"flood": 10, "calm": 10}, slots=2)
    await seed_many(store, "flood", 1000)
    await game.until(200)
    await seed_many(store, "calm", 1)
    before = len(game.taken)
    await game.until(250)
    assert "p/normal-calm-0" in game.taken[before : before + 6], "within a turn"


async def test_leaving_and_coming_back_gains_nothing(store: Store) -> None:
    game = await play(store, {"stays": 10, "hops": 10}, slots=4)
    await seed_many(store, "stays", 1000)
    for turn in range(60):
        many = [(f"p/hop-{turn}-{n}", ENVELOPE) for n in range(8)]
        await store.tasks.submit_many(many, header(tenant="hops"))
        await game.until(game.now + 20)  # of eight slots' worth it has eight tasks: more than its half
    assert game.shares()["hops"] < 0.53


async def test_an_absence_earns_nothing(store: Store) -> None:
    game = await play(store, {"stays": 10, "late": 10}, slots=4)
    await seed_many(store, "stays", 1000)
    await game.until(1000)
    await seed_many(store, "late", 1000)
    game.shares()
    await game.until(2000)
    assert game.shares() == pytest.approx({"stays": 0.5, "late": 0.5}, rel=0.05)


async def test_runs_of_pinned_agents_cost_no_turns(store: Store) -> None:
    """Their slots are theirs for good; a tenant that uses its agents must not wait for that in the lanes."""
    game = await play(store, {"a": 10, "b": 10}, slots=4)
    await seed_running_agent(store, "agent", tenant="a")
    game.slots = 3
    for turn in range(5):
        await seed_lease(store, f"pinned{turn}", agent="agent", tenant="a")
        await finish(store, f"p/pinned{turn}", "agent", run_ms=100_000)
    for tenant in "ab":
        await seed_many(store, tenant, 500)
    await game.until(1000)
    assert game.shares() == pytest.approx({"a": 0.5, "b": 0.5}, rel=0.06)


async def test_tenants_that_were_served_long_ago_are_forgotten(store: Store) -> None:
    game = await play(store, {f"t{n}": 5 for n in range(30)} | {"busy": 5})
    for n in range(30):
        await seed_many(store, f"t{n}", 1)
    await game.until(1000)
    await seed_many(store, "busy", 500)
    await game.until(game.now + 2000)
    assert await store.connection.redis.zcard(store.keys.tenants("p")) <= 5


# -- levels -----------------------------------------------------------------------------------------------------


async def test_more_tenants_than_are_looked_at_at_once_have_their_turns(store: Store) -> None:
    tenants = [f"t{number:02}" for number in range(45)]
    playing = await play(store, dict.fromkeys(tenants, 100.0), slots=40)
    for tenant in tenants:
        await seed_many(store, tenant, 3)
    await playing.until(10_000)
    assert sorted(playing.taken) == sorted(f"p/normal-{tenant}-{number}" for tenant in tenants for number in range(3))
    assert await store.connection.redis.zcard(store.keys.turns("p", "normal")) == 0
    for tenant in tenants:
        await seed_many(store, tenant, 1, lane="urgent")
    await seed_worker(store, "w2", capacity=50)
    assert len(ids(await exchange(store, "w2", room=50))) == 45


async def test_held_tenants_before_the_others_do_not_hide_them(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=25)
    for number in range(25):
        tenant = f"t{number:02}"
        await store.tenants.limit("p", tenant, {"running": 1})
        await seed_lease(store, f"first-of-{tenant}", tenant=tenant)
        await seed_many(store, tenant, 1)
    await seed_many(store, "z", 1)
    await seed_worker(store, "w2")
    assert ids(await exchange(store, "w2", room=10)) == ["p/normal-z-0"]


@pytest.mark.parametrize(("run_ms", "count"), [(0.05, 50), (1, 16), (4, 12), (100, 1)])
async def test_a_turn_is_for_more_tasks_where_they_are_shorter(store: Store, run_ms: float, count: int) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=50)
    for tenant in ("a", "b"):
        await seed_lease(store, f"known-{tenant}", tenant=tenant)
        await exchange(store, ended=[ended(f"p/known-{tenant}", run_ms=run_ms)])
        await seed_many(store, tenant, 60)
    found = await exchange(store, room=50)
    turns = [len(list(tasks)) for _, tasks in groupby(task.header.tenant for task in found.tasks)]
    assert turns[0] == count


async def test_urgent_goes_first_but_leaves_one_in_eight(store: Store) -> None:
    game = await play(store, {"a": 10, "b": 10}, slots=3)
    await seed_many(store, "a", 400, lane="urgent")
    await seed_many(store, "b", 200)
    await game.until(1000)
    levels = Counter(task.partition("-")[0] for task in game.taken)
    assert levels["p/normal"] / len(game.taken) == pytest.approx(1 / 8, rel=0.05)


async def test_urgent_takes_all_when_nothing_else_waits(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=50)
    await seed_many(store, "a", 40, lane="urgent")
    assert len(ids(await exchange(store, room=40))) == 40


async def test_urgent_is_fair_among_tenants(store: Store) -> None:
    game = await play(store, {"a": 10, "b": 10, "c": 10})
    for tenant, weight in zip("abc", (1, 2, 4), strict=True):
        await store.tenants.limit("p", tenant, {"weight": weight})
        await seed_many(store, tenant, 1000, lane="urgent")
    await game.until(1500)
    assert game.shares() == pytest.approx({"a": 1 / 7, "b": 2 / 7, "c": 4 / 7}, rel=0.05)


async def test_batch_runs_only_when_nothing_else_can(store: Store) -> None:
    game = await play(store, {"a": 10, "b": 10}, slots=4)
    await seed_many(store, "b", 50, lane="batch")
    await seed_many(store, "a", 50)
    await seed_many(store, "a", 20, lane="urgent")
    await game.until(10_000)
    levels = [task.partition("-")[0] for task in game.taken]
    assert set(levels[:70]) == {"p/normal", "p/urgent"}
    assert levels[70:] == ["p/batch"] * 50


async def set_batch_wait(store: Store, ms: int) -> None:
    await store.connection.redis.hset(store.keys.pool("p"), "batch_max_wait_ms", ms)


async def test_batch_is_promoted_in_time(store: Store) -> None:
    game = await play(store, {"default": 10, "flood": 10}, slots=2)
    await set_batch_wait(store, 20)
    await seed_task(store, "patient", lane="batch", batch=True)
    await set_batch_wait(store, LONG_MS)
    await seed_task(store, "young", lane="batch", batch=True)
    await seed_many(store, "flood", 300)
    await game.until(100)
    assert "p/patient" not in game.taken
    await asyncio.sleep(0.03)
    await store.tasks.fire_timers("p")
    await game.until(200)
    assert "p/patient" in game.taken
    assert "p/young" not in game.taken


async def test_batch_that_ran_when_it_was_promoted_waits_like_others_when_it_comes_back(store: Store) -> None:
    await seed_pool(store, batch_max_wait_ms=1)
    await seed_worker(store)
    task = await seed_lease(store, lane="batch", batch=True)
    await asyncio.sleep(0.005)
    await store.tasks.fire_timers("p")
    await finish(store, task, verdict="retry")
    assert await store.connection.redis.zrange(store.keys.lane("p", "normal", "default"), 0, -1) == [task]


async def test_priority_is_time_so_that_the_least_is_not_starved(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=100)
    await seed_task(store, "low", later_us=20_000)
    await seed_task(store, "high", later_us=0)
    assert ids(await exchange(store, room=1)) == ["p/high"]
    await asyncio.sleep(0.03)
    await seed_task(store, "later", later_us=0)
    assert ids(await exchange(store, room=2)) == ["p/low", "p/later"], "it has waited long enough"


# -- beyond the slots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run_ms", "count"), [(1, 12), (50, 2)])
async def test_only_short_tasks_are_taken_ahead(store: Store, run_ms: float, count: int) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=2)
    await seed_many(store, "a", 60)
    tasks = ids(await exchange(store, room=2, prefetch=10))
    assert len(tasks) == 2, "nothing is known of them yet"
    for _ in range(10):
        tasks = ids(await exchange(store, room=2, ended=[ended(task, run_ms=run_ms) for task in tasks]))
    done = [ended(task, run_ms=run_ms) for task in tasks]
    assert len(ids(await exchange(store, room=2, prefetch=10, ended=done))) == count


async def test_nothing_long_is_taken_ahead_of_others(store: Store) -> None:
    await seed_pool(store)
    await seed_worker(store, capacity=2)
    run_ms = {"short": 1, "long": 50}
    for tenant in run_ms:
        await seed_many(store, tenant, 200)
    tasks: list[str] = []
    for _ in range(40):
        done = [ended(task, run_ms=run_ms[task.split("-")[1]]) for task in tasks[:50]]
        tasks = ids(await exchange(store, room=2, prefetch=10, ended=done))
        assert sum("long" in task for task in tasks) <= 2


# -- labels -----------------------------------------------------------------------------------------------------


async def test_a_worker_takes_what_it_has_the_labels_for(store: Store) -> None:
    await seed_pool(store)
    await seed_host(store, "h1", ["gpu"])
    await seed_worker(store, "w1")
    await seed_worker(store, "w2", labels="gpu ssd")
    await seed_task(store, "t1", lane="normal+gpu")
    await seed_task(store, "t2", lane="urgent+gpu")
    await seed_task(store, "t3")
    assert ids(await exchange(store, "w1", room=5)) == ["p/t3"]
    assert ids(await exchange(store, "w2", room=5)) == ["p/t2", "p/t1"]


async def test_a_worker_with_labels_serves_the_others_fairly(store: Store) -> None:
    """A tenant has one finish tag for all lanes, so that labels do not count twice."""
    await seed_pool(store)
    await seed_host(store, "h1", ["gpu"])
    await seed_worker(store, labels="gpu", capacity=4)
    game = Play(store, 4, {"a": 10, "b": 10})
    await seed_many(store, "a", 500)
    await seed_many(store, "a", 500, lane="normal+gpu")
    await seed_many(store, "b", 500)
    await game.until(1000)
    assert game.shares() == pytest.approx({"a": 0.5, "b": 0.5}, rel=0.05)
