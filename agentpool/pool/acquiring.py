"""Acquire, the long way: an agent that is asked for its health, one that is made, or a place in line."""

import asyncio
from asyncio import get_running_loop
from collections.abc import Generator, Sequence
from typing import Any

from agentpool.clock import monotonic
from agentpool.errors import PoolAtCapacity, PoolClosed
from agentpool.pool.core import Core
from agentpool.pool.errors import AcquireTimeout
from agentpool.pool.member import Member
from agentpool.pool.waiting import Waiter

__all__ = ["Acquirer"]


class Acquirer:
    """Requests that could not be served at once. Whatever ends one, it leaves nothing in line and holds nothing."""

    def __init__(self, core: Core) -> None:
        self._core, config = core, core.config
        self._timeout, self._warm_wait = config.acquire_timeout, config.warm_wait
        self._max_waiting, self._max_size = config.max_waiting, config.max_size

    def acquire(self, priority: int, timeout: float | None) -> Generator[Any, Any, Member]:
        """Return an agent, active; raises `AcquireTimeout`, `PoolAtCapacity`, `PoolClosed`, or why none can be made.

        To be entered with `yield from`: a coroutine around each wait in line would cost a tenth of it.
        """
        core = self._core
        loop = get_running_loop()
        if loop is not core.loop:
            core.check_loop()
        asked = monotonic()
        if timeout is None:
            timeout = self._timeout
        deadline = None if timeout is None else asked + timeout
        again = False
        while True:
            if core.closing:
                raise PoolClosed(f'Pool "{core.name}" is closed. Open a new one.')
            if core.idle:
                member, fresh = core.take_idle(), False
            else:
                waiter = self._stand_in_line(loop, priority, again)
                timers = () if deadline is None and waiter.ripe else self._set_timers(waiter, deadline, timeout)
                try:
                    member, fresh = yield from waiter.future
                except BaseException:
                    core.waiters.drop(waiter)
                    if late := waiter.late_answer():
                        core.put_back(late)
                    raise
                finally:
                    for timer in timers:
                        timer.cancel()
            if fresh or not core.checks_health or (yield from self._is_healthy(member, deadline).__await__()):
                core.waits.record(monotonic() - asked)
                core.counted.acquired += 1
                return member
            again = True
            if deadline is not None and monotonic() >= deadline:
                core.counted.timed_out += 1
                raise AcquireTimeout(core.name, timeout or 0.0)

    # -- the line -----------------------------------------------------------------------------------------------

    def _stand_in_line(self, loop: asyncio.AbstractEventLoop, priority: int, again: bool) -> Waiter:
        core = self._core
        if core.waiters.count >= self._max_waiting and not again and self._line_is_full():
            core.counted.refused += 1
            raise PoolAtCapacity(
                f'Pool "{core.name}" is at capacity: {core.total} agents, {len(core.waiters)} requests in line. '
                "Try again later, or raise max_size or max_waiting."
            )
        waiter = Waiter(loop, priority, again or not self._warm_wait)
        core.waiters.add(waiter, first=again)
        if core.starting or len(core.members) < self._max_size:
            core.spawner.fill()
        return waiter

    def _line_is_full(self) -> bool:
        """Tell whether no more may wait; those for whom an agent is being made, or can be, do not count."""
        core, can_start = self._core, self._core.circuit.permits()
        if not core.total and not can_start:
            return False  # there is a better reason to refuse it
        room = max(0, core.room) if can_start else 0
        return core.waiters.count - core.spawner.count_wanted() - room >= self._max_waiting

    def _set_timers(
        self, waiter: Waiter, deadline: float | None, timeout: float | None
    ) -> Sequence[asyncio.TimerHandle]:
        loop, timers = get_running_loop(), []
        if deadline is not None:
            timers.append(loop.call_later(deadline - monotonic(), self._expire, waiter, timeout))
        if not waiter.ripe:
            timers.append(loop.call_later(self._warm_wait, self._ripen, waiter))
        return timers

    def _expire(self, waiter: Waiter, timeout: float | None) -> None:
        if not waiter.future.done():
            self._core.counted.timed_out += 1
            self._core.waiters.drop(waiter)
            waiter.fail(AcquireTimeout(self._core.name, timeout or 0.0))

    def _ripen(self, waiter: Waiter) -> None:
        waiter.ripe = True
        self._core.spawner.fill()

    # -- health -------------------------------------------------------------------------------------------------

    async def _is_healthy(self, member: Member, deadline: float | None) -> bool:
        """Ask an agent that this request holds; False: it was ended or given back, and another must be found."""
        core = self._core
        limit = core.config.health_timeout
        allowed = limit if deadline is None else max(0.0, min(limit, deadline - monotonic()))
        call = member.instance.ask_health(allowed)
        try:
            ended = await call.result()
        except asyncio.CancelledError:
            core.put_back(member)
            raise
        if ended.well and ended.value and not core.closing:
            return True
        out_of_time = allowed < limit and ended.why and ended.kind != "abandoned"  # the request, not the agent
        if not out_of_time and not core.closing:
            member.instance.break_unhealthy(ended)
        core.put_back(member)
        return False
