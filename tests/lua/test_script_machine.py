"""All scripts in any order, by Hypothesis: the invariants hold after each, and repeats do no harm."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.invariants import Picture, take_picture, violations
from support.seeds import (
    LONG_MS,
    MASTER,
    SETTINGS,
    ended,
    failure,
    header,
    outcome,
    seed_agent,
    seed_host,
    seed_leader,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.doctor import examine
from agentpool.errors import AgentPoolError, RedisUnavailable
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.states import (
    AGENT_MOVES,
    TASK_MOVES,
    WORKER_MOVES,
    AgentStatus,
    TaskStatus,
    WorkerStatus,
    check_move,
)
from agentpool.protocol.tasks import TaskEnvelope
from agentpool.store import Store
from agentpool.store.tasks import EndedTask, SubmitOptions, TaskGroup

NAMES = ["a", "b", "c", "d", "e"]
TENANTS = ["t1", "t2"]
SMALL: dict[str, object] = {
    "max_workers": 4, "max_pending": 3, "max_queued": 3, "min_workers": 0, "max_dead": 2, "labels:Q": "gpu",
}  # fmt: skip
LIMITS: list[tuple[str, float | None]] = [
    ("running", 1), ("running", 2), ("running", None), ("requests_per_minute", 2), ("requests_per_minute", None),
    ("agents", 2), ("agents", None), ("tokens_per_minute", 5), ("tokens_per_minute", None), ("weight", 3),
    ("queued", 1),
]  # fmt: skip
LANES = ["normal", "urgent", "batch", "normal+gpu"]

pick = st.integers(0, 999)
VERDICTS = st.tuples(st.sampled_from(["done", "retry", "back", "dead", "retry"]), st.sampled_from([0, 0, 1, LONG_MS]))


class Machine(RuleBasedStateMachine):
    """Rules pick among what is there now, by number."""

    examples = 0

    def __init__(self, url: str) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self.client.flushall()
        self.runner = asyncio.Runner()
        self.store = Store.open(url)
        self.calls: list[Callable[[], Awaitable[Any]]] = []
        self.count = 0
        self.outcomes: dict[str, str] = {}
        self.incarnations: dict[str, tuple[str, int]] = {}
        """Of each agent's name: the operation that made the latest, and its incarnation."""
        self.token = ""
        self.came_back: set[str] = set()
        """Tasks that were taken once: the bounds of queues do not count them."""
        self.waited: set[str] = set()
        """Tasks that waited for tasks of their own at some time: meanwhile others may begin beside them."""

    def teardown(self) -> None:
        try:
            Machine.examples += 1
            if self.token and Machine.examples % 5 == 0:  # it waits a while, to see whether faults stay
                self.runner.run(self._ask_the_doctor())
        finally:
            self.close()

    async def _ask_the_doctor(self) -> None:
        """The product's own check agrees, once reaping that was left half done is done."""
        token = await seed_leader(self.store, master=self.token.split()[1])
        for worker in await self.store.workers.lost("p"):
            await self.store.workers.reap("p", worker, proof="lost", authority=token, reason="x")
        found = await examine(self.store, local=False)
        # `max_pending` bounds new requests; agents that lost their worker wait all the same.
        assert [str(fault) for fault in found if fault.invariant != 9] == []

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
        self.client.close()

    # -- how rules act ------------------------------------------------------------------------------------------

    def call(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Do it, and remember it for `repeat`. Refusals are fine; whether they changed anything is seen after."""
        self.calls.append(act)
        return self._run(act)

    def _run(self, act: Callable[[], Awaitable[Any]]) -> Any:
        async def caught() -> Any:
            try:
                return await act()
            except RedisUnavailable:
                raise  # a fault of a script
            except AgentPoolError as error:
                return error

        return self.runner.run(caught())

    def script(self, name: str, *arguments: Any) -> Any:
        return self.call(lambda: self.store.connection.call(name, "p", *arguments))

    def number(self) -> int:
        self.count += 1
        return self.count

    @staticmethod
    def one(things: Iterable[Any], n: int) -> Any:
        ordered = sorted(things)
        return ordered[n % len(ordered)] if ordered else None

    def workers(self, *statuses: str) -> list[str]:
        return [id for id, fields in self.now.workers.items() if fields["status"] in statuses]

    def agents(self, *statuses: str) -> list[str]:
        return [name for name, fields in self.now.agents.items() if fields["status"] in statuses]

    def leaving(self) -> list[str]:
        return [name for name, fields in self.now.agents.items() if fields["process_id"] in self.now.index["draining"]]

    # -- rules --------------------------------------------------------------------------------------------------

    @initialize(
        placement=st.sampled_from(["least_loaded", "pack"]),
        capacities=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        limits=st.sampled_from([{}, {"running": 1}, {"running": 2}, {"requests_per_minute": 3}]),
        deaths=st.sampled_from([0, 0, 1, 3]),
    )
    def pool(self, placement: str, capacities: list[int], limits: dict[str, float], deaths: int) -> None:
        """Most of what may go wrong needs workers and agents that run."""

        async def seed() -> None:
            self.token = await seed_pool(self.store, types=["Q", "R"], **SMALL, placement=placement)
            await seed_host(self.store, "h1", ["gpu"])
            if deaths:
                await seed_task(self.store, "killer", tenant=TENANTS[1])
            for number in range(deaths):
                worker = await seed_worker(self.store, f"u{number}")
                await self.store.tasks.exchange("p", worker, 1, room=1)
                await self.store.workers.reap(
                    "p", worker, proof="owner", authority=MASTER, reason="killed", blame={"p/killer": "suspect"}
                )
            for tenant in TENANTS if limits else []:
                await self.store.tenants.limit("p", tenant, limits)
            for number, capacity in enumerate(capacities):
                await seed_worker(self.store, f"v{number}", capacity=capacity, labels="gpu" if number else "")
            for name in NAMES[: max(0, sum(capacities) - 2)]:
                await seed_running_agent(self.store, name, tenant=TENANTS[0])

        self.runner.run(seed())
        self.now = take_picture(self.client)

    @rule(what=st.sampled_from(["settings", "scale", "leader"]), workers=st.integers(1, 5))
    def govern(self, what: str, workers: int) -> None:
        token = self.token
        values = SETTINGS | SMALL | {"max_workers": workers, "max_pending": workers}
        if what == "settings":
            types = [TypeInfo(name="Q", module="x", labels=("gpu",)), TypeInfo(name="R", module="x")]
            self.call(lambda: self.store.pools.apply("p", token, types, values))
        elif what == "scale":
            self.call(lambda: self.store.pools.scale("p", workers))
        else:
            self.client.delete(self.store.keys.leader_lock("p"))
            self.token = self.runner.run(seed_leader(self.store, master=f"m{self.number()}"))

    @rule(count=st.integers(1, 3), capacity=st.integers(0, 3), waits=st.booleans())
    def order(self, count: int, capacity: int, waits: bool) -> None:
        orders = [(f"w{self.number()}", "s") for _ in range(count)]
        token = self.token

        ordered = self.call(lambda: self._order(orders, token))
        if ordered and not waits:
            self.script("register_worker", ordered[0], "s", capacity, "pid", 1)

    @rule(name=st.sampled_from(NAMES), tenant=st.sampled_from(TENANTS), waits=st.booleans())
    def spawn(self, name: str, tenant: str, waits: bool) -> None:
        operation = f"o{self.number()}"
        worker = self.call(lambda: seed_agent(self.store, name, tenant=tenant, operation=operation))
        if isinstance(worker, str) and not waits:
            incarnation = self.client.hget(self.store.keys.agent(f"p/{name}"), "incarnation")
            self.script("confirm_agent", worker, name, incarnation)

    @rule(n=pick, to_agent=st.booleans(), tenant=st.sampled_from(TENANTS), extra=pick, waits=st.booleans())
    def submit(self, n: int, to_agent: bool, tenant: str, extra: int, waits: bool) -> None:
        id = f"k{self.number()}"
        name = self.one(self.agents("idle") or self.now.agents, n) if to_agent else ""
        options: dict[str, Any] = {}
        if extra % 3 == 0:
            what = self.one(["delay", "expires", "key", "batch", "parent", "limits"], extra // 3)
            options = {
                "delay": {"delay": (1, LONG_MS)[n % 2]},
                "expires": {"expires": (1, LONG_MS)[n % 2]},
                "batch": {"batch": True},
                "key": {"key": "digest", "digest": "same"},
                "parent": {"parent": self.one(self.now.leases, n)},
                "limits": {"limits": ("reject", "total")[n % 2]},
            }[what]
        if not options.get("parent", "-"):
            options = {}
        self.client.hset(self.store.keys.pool("p"), "batch_max_wait_ms", (1, LONG_MS)[n % 2])
        lane = "child" if "parent" in options else "batch" if "batch" in options else LANES[n % len(LANES)]
        self.call(lambda: seed_task(self.store, id, agent=name or "", tenant=tenant, lane=lane, **options))
        if not waits:
            self.exchange(n, self.now.agents[name]["process_id"] if name else "")

    @rule(
        tenants=st.lists(st.sampled_from(TENANTS), min_size=1, max_size=4),
        n=pick,
        listens=st.booleans(),
        ahead=st.sampled_from([0, 2, 90]),
    )
    def submit_together(self, tenants: list[str], n: int, listens: bool, ahead: int) -> None:
        for worker in self.workers("ready") if listens else []:
            self.script("beat_worker", worker, 0, "", 0, "", 1, ahead)
        groups = [
            TaskGroup(
                header(tenant=tenant, lane=LANES[(n + place) % len(LANES)]),
                SubmitOptions(delay=0 if (n // 4 + place) % 5 else LONG_MS),
                [(f"p/g{self.number()}", TaskEnvelope(msgspec.Raw(b"null"))) for _ in range(1 + (n + place) % 3)],
            )
            for place, tenant in enumerate(tenants)
        ]
        self.call(lambda: self.store.tasks.submit_groups(groups))

    @rule(
        n=st.integers(0, 3),
        verdicts=st.lists(VERDICTS, max_size=3),
        room=st.integers(-1, 4),
        prefetch=st.sampled_from([0, 0, 2]),
        late=st.sampled_from([1, 1, 1, 1, 0, -1]),
        idle=st.booleans(),
    )
    def work(self, n: int, verdicts: list[tuple[str, int]], room: int, prefetch: int, late: int, idle: bool) -> None:
        """A worker hands in some of what it has, and takes what it can."""
        worker = self.one(self.workers("ready") or self.now.workers, n)
        if worker:
            had = [
                self._ended(task, verdict, delay)
                for task, (verdict, delay) in zip(self._tasks_of(worker), verdicts, strict=False)
            ]
            number = max(1, int(self.now.workers[worker].get("claim_number", 0)) + late)
            names = NAMES if idle else []
            self.call(
                lambda: self.store.tasks.exchange(
                    "p", worker, number, room=room, prefetch=prefetch, ended=had, names=names
                )
            )

    work_more = rule(n=st.integers(0, 3), verdicts=st.lists(VERDICTS, max_size=3), room=st.integers(1, 4))(
        lambda self, n, verdicts, room: self.work(n, verdicts, room, 0, 1, idle=True)
    )

    @rule(n=st.integers(0, 3), comes_back=st.booleans())
    def lose_a_worker(self, n: int, comes_back: bool) -> None:
        """A worker dies of what it does, and another comes in its place."""
        worker = self.one(set(self.now.leases.values()), n)
        if worker:
            blame = dict.fromkeys(self._tasks_of(worker), "suspect")
            self.call(
                lambda: self.store.workers.reap(
                    "p", worker, proof="owner", authority=MASTER, reason="killed", blame=blame
                )
            )
        if comes_back:
            new = f"w{self.number()}"
            token = self.token
            self.call(lambda: self._order([(new, "s")], token))
            self.script("register_worker", new, "s", 1 + n, "pid", 1, "labels", "gpu" if n % 2 else "")

    async def _order(self, orders: list[tuple[str, str]], token: str) -> Any:
        async with self.store.locks.placement("p", MASTER) as placement:
            return await self.store.workers.reserve(
                "p", orders, leader=token, placement=placement or "", master=MASTER, max_starting=3
            )

    @rule(tenant=st.sampled_from(TENANTS), n=pick)
    def limit(self, tenant: str, n: int) -> None:
        name, value = LIMITS[n % len(LIMITS)]
        limits = {name: value}
        self.call(lambda: self.store.tenants.limit("p", tenant, limits))

    @rule(what=pick, n=pick)
    def anything(self, what: int, n: int) -> None:
        """One of the things that can be done to what is there.

        Chosen here and not by preconditions: what is there depends on the server's clock, and Hypothesis wants the
        same rules to be possible whenever it repeats its choices.
        """
        now = self.now
        possible: list[tuple[Callable[[int], None], object]] = [
            (self.hand_in, now.leases),
            (self.exchange, now.leases),
            (self.terminate, self.agents("active")),
            (self.release, self.leaving()),
            (self.confirm, self.agents("placed")),
            (self.exchange, now.lanes or now.mailboxes or now.index["suspects"]),
            (self.fire, now.index["due"]),
            (self.retire, now.index["draining"]),
            (self.reap, len(now.workers) > 2),
            (self.reap_to_the_end, now.index["lost"]),
            (self.cancel, now.unfinished),
            (self.register, now.index["starting"]),
            (self.drain, now.index["processes"]),
            (self.fail, self.agents("placed", "idle", "active")),
            (self.place_pending, now.index["pending"]),
            (self.start, now.index["starting"]),
            (self.terminate, now.agents),
            (self.retire_idle, self.agents("idle")),
            (self.withdraw, now.agents),
            (self.replay, now.letters),
            (self.purge, now.letters),
            (self.follow, now.unfinished),
            (self.report, now.leases),
        ]
        act = self.one([number for number, (_, there) in enumerate(possible) if there], what)
        if act is not None:
            possible[act][0](n)

    anything_more = rule(what=pick, n=pick)(lambda self, what, n: self.anything(what, n))

    @rule(back=st.integers(1, 30))
    def repeat(self, back: int) -> None:
        """A call whose answer was lost is made again, perhaps long after."""
        if self.calls:
            self._run(self.calls[-min(back, len(self.calls))])

    @rule()
    def repeat_the_last(self) -> None:
        """At once, it changes nothing that counts."""
        if self.calls:
            before = take_picture(self.client)
            self._run(self.calls[-1])
            after = take_picture(self.client)
            assert after.unfinished <= before.unfinished
            assert set(after.agents) <= set(before.agents)
            assert after.attempts.keys() <= before.attempts.keys()

    # -- workers ------------------------------------------------------------------------------------------------

    def start(self, n: int) -> None:
        worker = self.one(self.now.index["starting"], n)
        self.call(lambda: self.store.workers.start("p", worker, "s", {"pid": 1}))

    def register(self, n: int) -> None:
        self.script("register_worker", self.one(self.now.index["starting"], n), "s", n % 4, "pid", 1)

    def drain(self, n: int) -> None:
        worker = self.one(self.now.index["processes"], n)
        self.call(lambda: self.store.workers.drain("p", worker, reason="x", only_idle=n % 3 == 0))

    def retire(self, n: int) -> None:
        worker = self.one([*self.now.index["draining"], *self.now.index["starting"]], n)
        self.call(lambda: self.store.workers.retire("p", worker, reason="x"))

    def reap(self, n: int) -> None:
        """One call, which may leave something."""
        limit, crashes, backoff = 1 + n % 3, 1 + n % 4, (0, LONG_MS)[n % 2]
        worker = self.one(self.now.workers, n)
        blame = [word for task in self._tasks_of(worker) for word in (task, ("suspect", "started")[n % 2])]
        self.script("reap_worker", worker, "owner", MASTER, 0, "killed", limit, crashes, backoff, *blame)

    def _tasks_of(self, worker: str) -> list[str]:
        return sorted(task for task, holder in self.now.leases.items() if holder == worker)

    def reap_to_the_end(self, n: int) -> None:
        worker, token = self.one(self.now.index["lost"], n), self.token
        self.call(
            lambda: self.store.workers.reap("p", worker, proof="lost", authority=token, reason="x", crashes_max=2)
        )

    # -- agents -------------------------------------------------------------------------------------------------

    def place_pending(self, n: int) -> None:
        token = self.token
        self.call(lambda: self.store.agents.place_pending("p", token, 1 + n % 3))

    def confirm(self, n: int) -> None:
        name = self.one(self.agents("placed"), n)
        fields = self.now.agents[name]
        self.script("confirm_agent", fields["process_id"], name, fields["incarnation"])

    def fail(self, n: int) -> None:
        name = self.one(self.agents("placed", "idle", "active"), n)
        fields = self.now.agents[name]
        self.script("fail_agent", fields["process_id"], name, fields["incarnation"], 1, "no", n % 2)

    def terminate(self, n: int) -> None:
        name = self.one(self.agents("active") or self.now.agents, n)
        self.call(lambda: self.store.agents.terminate(f"p/{name}"))

    def retire_idle(self, n: int) -> None:
        name = self.one(self.agents("idle"), n)
        since = int(self.now.agents[name]["last_used_at"])
        self.call(lambda: self.store.agents.retire_idle(f"p/{name}", since))

    def withdraw(self, n: int) -> None:
        name = self.one(self.now.agents, n)
        operation = self.now.agents[name]["operation"]
        self.call(lambda: self.store.agents.withdraw(f"p/{name}", operation))

    def release(self, n: int) -> None:
        name = self.one(self.leaving(), n)
        fields = self.now.agents[name]
        self.script("release_agent", fields["process_id"], name, fields["incarnation"], ("", "{}")[n % 2])

    # -- tasks --------------------------------------------------------------------------------------------------

    def exchange(self, n: int, worker: str = "") -> None:
        worker = worker or self.one(self.workers("ready") or self.now.workers, n)
        if worker:
            self._exchange(worker, n, [])

    def hand_in(self, n: int) -> None:
        """What a worker has, and what it had."""
        worker = self.one(self.now.leases.values(), n)
        tasks = self._tasks_of(worker) + (sorted(self.now.tasks)[:2] if n % 5 == 0 else [])
        verdicts = ["done", "retry", "back", "dead"]
        self._exchange(worker, n, [self._ended(task, verdicts[(n + i) % 4], 0) for i, task in enumerate(tasks)])

    def _exchange(self, worker: str, n: int, tasks: list[EndedTask]) -> None:
        number = int(self.now.workers[worker].get("claim_number", 0)) + 1
        self.call(lambda: self.store.tasks.exchange("p", worker, number, room=1 + n % 3, ended=tasks, names=NAMES))

    def _ended(self, task: str, verdict: str, delay_ms: int) -> EndedTask:
        agent = self.now.header(task)[1].replace("-", "") if task in self.now.unfinished else ""
        delay_ms = delay_ms if verdict in ("retry", "back") else 0
        number = self.number()
        result = outcome(result=number) if verdict == "done" else failure(status="dead" if verdict == "dead" else "")
        return ended(task, agent, verdict, result=result, delay_ms=delay_ms, run_ms=number % 40, tokens=number % 3)

    def fire(self, n: int) -> None:
        self.script("fire_timers", 1 + n % 3)

    def replay(self, n: int) -> None:
        task, again = self.one(self.now.letters, n), f"p/r{self.number()}"
        self.call(lambda: self.store.letters.replay(task, again))

    def purge(self, n: int) -> None:
        task = self.one(self.now.letters, n)
        self.call(lambda: self.store.letters.purge([task]))

    def follow(self, n: int) -> None:
        task = self.one(self.now.unfinished, n)
        self.call(lambda: self.store.tasks.follow(task))

    def report(self, n: int) -> None:
        task = self.one(self.now.leases, n)
        worker = self.now.leases[task]
        self.call(lambda: self.store.tasks.report("p", worker, [(task, b"1")]))

    def cancel(self, n: int) -> None:
        task = self.one(self.now.unfinished, n)
        self.call(lambda: self.store.tasks.cancel(task))

    # -- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        if not self.token:
            return
        before = getattr(self, "now", None)
        self.now = take_picture(self.client)
        self.came_back |= set(self.now.leases)
        self.now.came_back = self.came_back
        assert violations(self.now) == []
        self._outcomes_stay()
        self._suspects_are_alone()
        self._incarnations_grow()
        if before:
            self._moves_are_legal(before)

    def _outcomes_stay(self) -> None:
        for task, text in self.now.tasks.items():
            if task not in self.now.unfinished:
                assert self.outcomes.setdefault(task, text) == text, "4: an outcome changed"
            else:
                assert task not in self.outcomes, "4: an outcome was taken back"

    def _suspects_are_alone(self) -> None:
        """A task that may have killed a worker shares none, but with tasks that wait for tasks of their own."""
        self.waited |= {task for sets in self.now.held.values() for task in sets["waits"]}
        for task, worker in self.now.leases.items():
            status = self.now.workers[worker]["status"]
            if self.now.attempts.get(task, "0").endswith(" 1") and status != "lost" and task not in self.waited:
                assert [other for other in self._tasks_of(worker) if other not in self.waited] == [task]

    def _incarnations_grow(self) -> None:
        for name, fields in self.now.agents.items():
            operation, incarnation = self.incarnations.get(name, ("", 0))
            grown = int(fields["incarnation"]) - incarnation
            assert grown >= 0, "7: an incarnation went back"
            if fields["status"] != "pending" and operation != fields["operation"]:
                assert grown > 0, "7: another agent of the name got the same incarnation"
            if fields["status"] != "pending" or operation == fields["operation"]:
                self.incarnations[name] = (fields["operation"], int(fields["incarnation"]))

    def _moves_are_legal(self, before: Picture) -> None:
        for id, fields in self.now.workers.items():
            old = before.workers.get(id, {"status": "ordered", "version": "0"})
            assert int(fields["version"]) >= int(old["version"])
            if old["status"] != fields["status"]:
                check_move(WORKER_MOVES, WorkerStatus(old["status"]), WorkerStatus(fields["status"]), id)
        for name, fields in self.now.agents.items():
            old = before.agents.get(name, {})
            if old.get("operation") == fields["operation"] and old["status"] != fields["status"]:
                check_move(AGENT_MOVES, AgentStatus(old["status"]), AgentStatus(fields["status"]), name)
        for id in before.tasks.keys() & self.now.tasks.keys():
            was, now = _task_status(before, id), _task_status(self.now, id)
            if was != now:
                check_move(TASK_MOVES, was, now, id)


def _task_status(picture: Picture, id: str) -> TaskStatus:
    if id not in picture.unfinished:
        return TaskStatus(json.loads(picture.tasks[id])["status"])
    if id in picture.leases:
        return TaskStatus.LEASED
    return TaskStatus.DELAYED if id in picture.delayed else TaskStatus.QUEUED


EXAMPLES = os.environ.get("MACHINE_EXAMPLES")
"""Set it to look further than each run of the tests does, and to have what is found made small (with --timeout=0)."""


@pytest.mark.timeout(400)
def test_invariants_hold_whatever_is_called(redis_url: str) -> None:
    run_state_machine_as_test(
        lambda: Machine(redis_url),
        settings=settings(
            max_examples=int(EXAMPLES or 60),
            stateful_step_count=50,
            deadline=None,
            derandomize="CI" in os.environ,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
