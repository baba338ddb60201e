"""All scripts in any order, by Hypothesis: the invariants hold after each, and repeats do no harm."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.invariants import Picture, take_picture, violations
from support.seeds import (
    LONG_MS,
    MASTER,
    SETTINGS,
    failure,
    outcome,
    seed_agent,
    seed_leader,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.doctor import examine
from agentpool.errors import AgentPoolError, RedisUnavailable
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.states import AGENT_MOVES, WORKER_MOVES, AgentStatus, WorkerStatus, check_move
from agentpool.store import Store

NAMES = ["a", "b", "c", "d", "e"]
TENANTS = ["t1", "t2"]
SMALL = {"max_workers": 4, "max_pending": 3, "max_queued": 3, "min_workers": 0}

pick = st.integers(0, 999)


class Machine(RuleBasedStateMachine):
    """Each rule picks among what is there now, by number; nothing there, nothing happens."""

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

    def teardown(self) -> None:
        try:
            Machine.examples += 1
            if self.token and Machine.examples % 5 == 0:  # it waits a while, to see whether faults stay
                assert self.runner.run(examine(self.store, local=False)) == []
        finally:
            self.close()

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
    def one(things: Any, number: int) -> Any:
        ordered = sorted(things)
        return ordered[number % len(ordered)] if ordered else None

    def worker(self, number: int, *statuses: str) -> str | None:
        workers = self.now.workers
        return self.one([id for id in workers if not statuses or workers[id]["status"] in statuses], number)

    def agent(self, number: int, *statuses: str) -> str | None:
        agents = self.now.agents
        return self.one([name for name in agents if not statuses or agents[name]["status"] in statuses], number)

    # -- pools and leaders --------------------------------------------------------------------------------------

    @initialize(placement=st.sampled_from(["least_loaded", "pack"]), capacities=st.lists(st.integers(1, 3), max_size=3))
    def pool(self, placement: str, capacities: list[int]) -> None:
        """Most of what may go wrong needs workers and agents that run."""

        async def seed() -> None:
            self.token = await seed_pool(self.store, **SMALL, placement=placement)
            for number, capacity in enumerate(capacities):
                await seed_worker(self.store, f"v{number}", capacity=capacity)
            for name in NAMES[: max(0, sum(capacities) - 1)]:
                await seed_running_agent(self.store, name, tenant=TENANTS[0])

        self.runner.run(seed())
        self.now = take_picture(self.client)

    @rule(what=st.sampled_from(["settings", "scale", "leader"]), workers=st.integers(1, 5))
    def govern(self, what: str, workers: int) -> None:
        token = self.token
        values = SETTINGS | SMALL | {"max_workers": workers, "max_pending": workers}
        if what == "settings":
            self.call(lambda: self.store.pools.apply("p", token, [TypeInfo(name="R", module="x")], values))
        elif what == "scale":
            self.call(lambda: self.store.pools.scale("p", workers))
        else:
            self.client.delete(self.store.keys.leader_lock("p"))
            self.token = self.runner.run(seed_leader(self.store, master=f"m{self.number()}"))

    # -- workers ------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3), capacity=st.integers(0, 3), ready=st.booleans())
    def order(self, count: int, capacity: int, ready: bool) -> None:
        orders = [(f"w{self.number()}", "s") for _ in range(count)]
        token = self.token

        async def reserve() -> Any:
            async with self.store.locks.placement("p", MASTER) as placement:
                return await self.store.workers.reserve(
                    "p", orders, leader=token, placement=placement or "", master=MASTER, max_starting=3
                )

        ordered = self.call(reserve)
        if ready and ordered:
            self.script("register_worker", ordered[0], "s", capacity, "pid", 1)

    @precondition(lambda self: self.now.index["starting"])
    @rule(n=pick)
    def start(self, n: int) -> None:
        if worker := self.worker(n, "ordered", "starting"):
            self.call(lambda: self.store.workers.start("p", worker, "s", {"pid": 1}))

    @precondition(lambda self: self.now.index["starting"])
    @rule(n=pick, capacity=st.integers(0, 3))
    def register(self, n: int, capacity: int) -> None:
        if worker := self.worker(n, "ordered", "starting"):
            self.script("register_worker", worker, "s", capacity, "pid", 1)

    @precondition(lambda self: self.now.index["processes"])
    @rule(n=pick, only_idle=st.booleans())
    def drain(self, n: int, only_idle: bool) -> None:
        if worker := self.worker(n, "ready"):
            self.call(lambda: self.store.workers.drain("p", worker, reason="x", only_idle=only_idle))

    @precondition(lambda self: self.now.index["draining"])
    @rule(n=pick)
    def retire(self, n: int) -> None:
        if worker := self.worker(n, "draining", "starting"):
            self.call(lambda: self.store.workers.retire("p", worker, reason="x"))

    @precondition(lambda self: len(self.now.workers) > 2)
    @rule(n=pick, limit=st.integers(1, 3), crashes=st.integers(1, 3), backoff=st.sampled_from([0, LONG_MS]))
    def reap(self, n: int, limit: int, crashes: int, backoff: int) -> None:
        if worker := self.worker(n):
            self.script("reap_worker", worker, "owner", MASTER, 0, "killed", limit, crashes, backoff)

    @precondition(lambda self: self.now.index["lost"])
    @rule(n=pick)
    def reap_to_the_end(self, n: int) -> None:
        if worker := self.worker(n, "lost"):
            token = self.token
            self.call(
                lambda: self.store.workers.reap("p", worker, proof="lost", authority=token, reason="x", crashes_max=2)
            )

    # -- agents -------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), tenant=st.sampled_from(TENANTS), confirmed=st.booleans())
    def spawn(self, name: str, tenant: str, confirmed: bool) -> None:
        operation = f"o{self.number()}"
        worker = self.call(lambda: seed_agent(self.store, name, tenant=tenant, operation=operation))
        if confirmed and isinstance(worker, str):
            incarnation = self.client.hget(self.store.keys.agent(f"p/{name}"), "incarnation")
            self.script("confirm_agent", worker, name, incarnation)

    @precondition(lambda self: self.now.index["pending"])
    @rule(limit=st.integers(1, 3))
    def place_pending(self, limit: int) -> None:
        token = self.token
        self.call(lambda: self.store.agents.place_pending("p", token, limit))

    @rule(n=pick)
    def confirm(self, n: int) -> None:
        if name := self.agent(n, "placed"):
            fields = self.now.agents[name]
            self.script("confirm_agent", fields["process_id"], name, fields["incarnation"])

    @rule(n=pick, final=st.booleans())
    def fail(self, n: int, final: bool) -> None:
        if name := self.agent(n, "placed", "idle", "active"):
            fields = self.now.agents[name]
            self.script("fail_agent", fields["process_id"], name, fields["incarnation"], 1, "no", int(final))

    @precondition(lambda self: self.now.agents)
    @rule(n=pick)
    def terminate(self, n: int) -> None:
        if name := self.agent(n):
            self.call(lambda: self.store.agents.terminate(f"p/{name}"))

    @precondition(lambda self: self.now.agents)
    @rule(n=pick, idle=st.booleans())
    def let_go(self, n: int, idle: bool) -> None:
        if name := self.agent(n, *(("idle",) if idle else ())):
            fields = self.now.agents[name]
            operation, since = fields["operation"], int(fields["last_used_at"])
            if idle:
                self.call(lambda: self.store.agents.retire_idle(f"p/{name}", since))
            else:
                self.call(lambda: self.store.agents.withdraw(f"p/{name}", operation))

    @precondition(lambda self: self.now.index["draining"])
    @rule(n=pick, snapshot=st.sampled_from(["", "{}"]))
    def release(self, n: int, snapshot: str) -> None:
        draining = [
            name
            for name, fields in self.now.agents.items()
            if self.now.workers.get(fields["process_id"], {}).get("status") == "draining"
        ]
        if name := self.one(draining, n):
            fields = self.now.agents[name]
            self.script("release_agent", fields["process_id"], name, fields["incarnation"], snapshot)

    # -- tasks --------------------------------------------------------------------------------------------------

    @rule(n=pick, tenant=st.sampled_from(TENANTS), waits=st.booleans())
    def submit_by_type(self, n: int, tenant: str, waits: bool) -> None:
        id = f"k{self.number()}"
        self.call(lambda: seed_task(self.store, id, tenant=tenant))
        if not waits:
            self._claim(n, 2, 1)

    @precondition(lambda self: self.now.agents)
    @rule(n=pick, tenant=st.sampled_from(TENANTS), waits=st.booleans())
    def submit_to_agent(self, n: int, tenant: str, waits: bool) -> None:
        id, name = f"k{self.number()}", self.agent(n, "idle") or self.agent(n) or ""
        self.call(lambda: seed_task(self.store, id, agent=name, tenant=tenant))
        for number in range(len(self.now.index["processes"])) if not waits else ():
            self._claim(number, 0, 1)

    @precondition(lambda self: self.now.lanes or self.now.mailboxes)
    @rule(n=pick, by_type=st.integers(0, 3), back=st.sampled_from([-1, 0, 1, 1, 1]))
    def claim(self, n: int, by_type: int, back: int) -> None:
        self._claim(n, by_type, back)

    def _claim(self, n: int, by_type: int, back: int) -> None:
        if worker := self.worker(n, "ready") or self.worker(n):
            last = int(self.now.workers[worker].get("claim_number", 0))
            self.call(
                lambda: self.store.tasks.claim("p", worker, max(1, last + back), by_type=by_type, names=list(NAMES))
            )

    @precondition(lambda self: self.now.leases)
    @rule(n=pick, good=st.booleans())
    def complete(self, n: int, good: bool) -> None:
        task = self.one(self.now.leases, n)
        worker = self.now.leases[task]
        agent = self.now.header(task)[1].replace("-", "")
        result = outcome(worker) if good else failure(worker)
        self.call(lambda: self.store.tasks.complete(worker, task, agent, result))

    @precondition(lambda self: self.now.unfinished)
    @rule(n=pick)
    def cancel(self, n: int) -> None:
        if task := self.one(self.now.unfinished, n):
            self.call(lambda: self.store.tasks.cancel(task))

    # -- repeats ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.calls)
    @rule(back=st.integers(1, 30))
    def repeat(self, back: int) -> None:
        """A call whose answer was lost is made again, perhaps long after."""
        self._run(self.calls[-min(back, len(self.calls))])

    @precondition(lambda self: self.calls)
    @rule()
    def repeat_the_last(self) -> None:
        """At once, it changes nothing that counts."""
        before = take_picture(self.client)
        self._run(self.calls[-1])
        after = take_picture(self.client)
        assert after.unfinished <= before.unfinished
        assert set(after.agents) <= set(before.agents) | set(before.index["pending"])

    # -- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        if not self.token:
            return
        before = getattr(self, "now", None)
        self.now = take_picture(self.client)
        assert violations(self.now) == []
        self._outcomes_stay()
        self._incarnations_grow()
        if before:
            self._moves_are_legal(before)

    def _outcomes_stay(self) -> None:
        for task, text in self.now.tasks.items():
            if task not in self.now.unfinished:
                assert self.outcomes.setdefault(task, text) == text, "4: an outcome changed"
            else:
                assert task not in self.outcomes, "4: an outcome was taken back"

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


def test_invariants_hold_whatever_is_called(redis_url: str) -> None:
    run_state_machine_as_test(
        lambda: Machine(redis_url),
        settings=settings(
            max_examples=int(os.environ.get("MACHINE_EXAMPLES", "60")),
            stateful_step_count=50,
            deadline=None,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
