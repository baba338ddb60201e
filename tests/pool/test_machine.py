"""Any order of acquire, release, cancel, fail, break, recycle and close keeps the pool whole, and its counters true."""

import asyncio
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pool.sample import check, check_closed, config, controlled, healthy, restore, snapshot, steps

from agentpool.pool import AgentPool, Lease, PoolEvent
from agentpool.pool.member import Member

PICK = st.integers(0, 5)
"""Which of those there are; no draw depends on the pool's state, as its breaker goes by the real clock."""


class Nowhere:
    """A storage that keeps nothing."""

    async def save(self, data: bytes) -> None:
        assert data

    async def load(self) -> bytes | None:
        return None


class PoolMachine(RuleBasedStateMachine):
    """The pool's own loop runs only inside rules, so every step of the test is one that can be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.agent = controlled(healthy=healthy, snapshot=snapshot, restore=restore)
        self.pool = AgentPool(self.agent, config(
            min_size=1, max_size=3, max_waiting=3, recycle_threshold=4, recycle_jitter=0, recycles_at_once=1,
            max_recycles=2, max_memory_mb=None, breaker_failures=2,
            stop_timeout=10.0, cancel_grace=5.0,  # nothing is given up because the machine is slow
        ))  # fmt: skip
        self.events: list[PoolEvent] = []
        self.pool.subscribe(self.events.append)
        self.held: list[Lease] = []
        self.waiting: list[asyncio.Task[Lease]] = []
        self.served = self.runs = self.refused = 0
        self.closed = False
        self.go(self.pool.open())

    def go(self, code: Any) -> Any:
        return self.loop.run_until_complete(code)

    def turn(self, count: int) -> None:
        self.go(steps(count))
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.held.append(task.result())
                self.served += 1

    @rule(priority=st.integers(1, 3), count=st.integers(0, 8))
    def acquire(self, priority: int, count: int) -> None:
        async def ask() -> Lease:
            return await self.pool.acquire(priority=priority)

        self.waiting.append(self.loop.create_task(ask()))
        self.turn(count)

    @rule(pick=PICK, count=st.integers(0, 8))
    def release(self, pick: int, count: int) -> None:
        if not self.held:
            return
        lease = self.held.pop(pick % len(self.held))

        async def give_back() -> None:
            self.pool.release(lease)

        self.go(give_back())
        self.turn(count)

    @rule(pick=PICK, count=st.integers(0, 8))
    def cancel(self, pick: int, count: int) -> None:
        if self.waiting:
            self.waiting[pick % len(self.waiting)].cancel()
            self.turn(count)

    @rule(pick=PICK, fails=st.booleans())
    def run(self, pick: int, fails: bool) -> None:
        if self.closed or not self.held:
            return
        lease = self.held[pick % len(self.held)]
        if lease._member is not None and lease._member.id in self.pool._core.members:
            self.go(asyncio.wait([self.loop.create_task(self._run(lease, fails))]))
            self.runs += 1

    async def _run(self, lease: Lease, fails: bool) -> None:
        try:
            await lease.run(ValueError() if fails else 1)
        except ValueError:
            assert fails

    @rule(count=st.integers(1, 3))
    def let_starts_fail(self, count: int) -> None:
        self.agent.start_errors.extend(OSError() for _ in range(count))

    def member(self, pick: int) -> Member | None:
        members = list(self.pool._core.members.values())
        return members[pick % len(members)] if members else None

    @rule(pick=PICK)
    def make_ill(self, pick: int) -> None:
        if member := self.member(pick):
            self.agent.unhealthy.add(member.id)

    @rule(pick=PICK, count=st.integers(0, 8))
    def break_one(self, pick: int, count: int) -> None:
        if member := self.member(pick):

            async def break_() -> None:
                member.instance.break_("background() raised")

            self.go(break_())
            self.turn(count)

    @rule()
    def drain(self) -> None:
        async def drain() -> None:
            self.pool.drain_excess()

        self.go(drain())

    @rule(count=st.integers(0, 3))
    def evict(self, count: int) -> None:
        async def evict() -> None:
            self.pool.evict()

        self.go(evict())
        self.turn(count)

    @rule(count=st.integers(0, 8))
    def save(self, count: int) -> None:
        task = self.loop.create_task(self.pool.save_state(Nowhere(), timeout=0))
        self.turn(count)
        task.cancel()
        self.go(asyncio.wait([task]))

    @rule()
    def look(self) -> None:
        self.go(self.pool._upkeep.look_once())

    @rule(count=st.integers(0, 30))
    def wait(self, count: int) -> None:
        self.turn(count)

    @rule()
    def wait_for_the_breaker(self) -> None:
        self.go(asyncio.sleep(0.022))
        self.turn(5)

    @rule()
    def close(self) -> None:
        if len(self.events) < 30:
            return
        self.closed = True
        self.go(self.pool.close(drain_timeout=0))
        self.turn(2)

    @invariant()
    def whole(self) -> None:
        check(self.pool)

    @invariant()
    def counters_equal_what_happened(self) -> None:
        metrics = self.pool.metrics()
        moves = Counter(f"{event.source} → {event.target}" for event in self.events if event.source)
        assert {name: count for name, count in self.pool.transitions().items() if count} == dict(moves)
        assert metrics.spawned == sum(event.source is None for event in self.events)
        assert metrics.requests == self.runs
        assert metrics.acquired >= self.served
        answered = [task for task in self.waiting if task.done() and not task.cancelled() and not task.exception()]
        assert metrics.acquired - metrics.released == len(self.held) + len(answered)
        if not self.closed and all(task.done() for task in self.waiting):
            assert metrics.active == metrics.acquired - metrics.released

    @invariant()
    def no_more_agents_than_places(self) -> None:
        assert len(self.agent.alive) <= self.pool.config.max_size + self.pool.config.recycles_at_once

    def teardown(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.go(self.pool.close(drain_timeout=0))
        if self.waiting:
            self.go(asyncio.wait(self.waiting))
        self.go(check_closed(self.pool, self.agent))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
