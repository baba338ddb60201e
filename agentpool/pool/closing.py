"""The end of a pool, as a ladder: refuse, drain, cancel, take away, give up.

Nobody is served any more and those in line are told; idle agents stop at once; those in use may finish until the
deadline; then their tasks are cancelled; who still holds an agent then finds it ended; and what ignores its
cancellation is left behind and named.
"""

import asyncio
import contextlib
import logging

import msgspec

from agentpool.clock import monotonic
from agentpool.errors import PoolClosed
from agentpool.pool.core import Core
from agentpool.pool.lease import CLOSED
from agentpool.pool.recycler import Recycler
from agentpool.pool.spawner import Spawner
from agentpool.pool.states import PooledState

__all__ = ["CloseReport", "close"]

log = logging.getLogger(__name__)

MARGIN = 0.5
"""Time in s beyond an agent's own deadlines for the loop to come round."""
STARVED = 10.0
"""The same where all that is waited for has deadlines of its own: only a process that gets no CPU is later."""


class CloseReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a pool closed: ids of agents whose task was cancelled, and the calls that ignored that and still run."""

    cancelled: tuple[str, ...]
    abandoned: tuple[str, ...]


async def close(core: Core, spawner: Spawner, recycler: Recycler, drain_timeout: float) -> CloseReport:
    """Climb the ladder; never takes longer than its deadlines."""
    _refuse_those_in_line(core)
    spawner.stop()
    recycler.stop()
    for member in list(core.members.values()):
        if member.state is PooledState.ACTIVE:
            member.attention = True
        else:
            core.end(member, CLOSED)
    await _until_empty(core, drain_timeout)
    cancelled = tuple(member.id for member in core.members.values() if member.running)
    for member in core.members.values():
        member.instance.stop_runs(CLOSED)
    if cancelled:
        await _until_empty(core, core.config.cancel_grace + MARGIN)
    for member in list(core.members.values()):
        core.end(member, CLOSED)
    abandoned = await _see_all_off(core, recycler)
    if abandoned:
        log.error("pool.close_gave_up", extra={"pool": core.name, "calls": abandoned})
    return CloseReport(cancelled=cancelled, abandoned=abandoned)


def _refuse_those_in_line(core: Core) -> None:
    core.closing, core.short = True, False
    while waiter := core.waiters.pop():
        waiter.fail(PoolClosed(f'Pool "{core.name}" was closed while this request waited. Open a new one.'))


async def _until_empty(core: Core, timeout: float) -> None:
    if not core.members:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await core.empty.wait()


async def _see_all_off(core: Core, recycler: Recycler) -> tuple[str, ...]:
    """Wait for what the agents still do; each of their calls has its own deadline."""
    deadline = monotonic() + 2 * core.config.cancel_grace + core.config.stop_timeout + STARVED
    while (left := {*core.leaving.tasks, *recycler.tasks}) and monotonic() < deadline:
        await asyncio.wait(left, timeout=max(0.0, deadline - monotonic()))
    return core.leaving.calls_that_ignore_their_end()
