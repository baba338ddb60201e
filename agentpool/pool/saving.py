"""Saves what a pool has, and brings it back."""

import asyncio
import logging

import msgspec

from agentpool.clock import wall_ms
from agentpool.pool.core import Core
from agentpool.pool.errors import StateRefused
from agentpool.pool.figures import Counters
from agentpool.pool.member import Member
from agentpool.pool.metrics import counters
from agentpool.pool.saved import NOTHING, SavedAgent, SavedState, decode, encode
from agentpool.pool.spawner import Spawner
from agentpool.pool.states import LEASED, PooledState
from agentpool.pool.storage import Storage

__all__ = ["SaveReport", "load_state", "save_state"]

log = logging.getLogger(__name__)

S = PooledState


class SaveReport(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of agents that were saved, and of those whose snapshot could not be had in time as they were in use."""

    saved: tuple[str, ...]
    busy: tuple[str, ...]


async def save_state(core: Core, storage: Storage, timeout: float) -> SaveReport:
    """Save every agent; one in use is asked when it is given back, and after `timeout` s saved without snapshot."""
    members = [member for member in core.members.values() if member.state in (S.IDLE, S.ACTIVE, S.RECYCLING)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_save(core, member, timeout)) for member in members]
    results = [task.result() for task in tasks]
    state = SavedState(
        agent_type=core.type.name,
        saved_at_ms=wall_ms(),
        counters=counters(core),
        agents=[agent for agent, _ in results],
    )
    await storage.save(encode(state))
    return SaveReport(
        saved=tuple(agent.agent_id for agent, asked in results if asked),
        busy=tuple(agent.agent_id for agent, asked in results if not asked),
    )


async def _save(core: Core, member: Member, timeout: float) -> tuple[SavedAgent, bool]:
    asked, snapshot = not core.type.has_snapshot, None
    if not asked and await _claim(core, member, timeout):
        asked = True
        try:
            snapshot = await member.instance.snapshot()
        finally:
            core.put_back(member)
    agent = SavedAgent(
        agent_id=member.id,
        requests=member.requests,
        recycles=member.recycles,
        errors=member.errors,
        snapshot=NOTHING if snapshot is None else snapshot,
    )
    return agent, asked


async def _claim(core: Core, member: Member, timeout: float) -> bool:
    """Hold an agent, for a moment, ahead of all requests; False: it was not given back in time, or ended."""
    if member.state is S.IDLE:
        core.idle.remove(member)
        core.ledger.move(member, LEASED)
        return True
    if member.state is not S.ACTIVE or member.claim:
        return False
    claim: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    member.claim = claim
    member.look()
    try:
        async with asyncio.timeout(timeout):
            return await claim
    except BaseException as error:
        if claim.done() and not claim.cancelled() and claim.result():
            core.put_back(member)  # it came together with the deadline
        member.claim = None if member.claim is claim else member.claim
        member.look()
        if isinstance(error, TimeoutError):
            return False
        raise


async def load_state(core: Core, spawner: Spawner, storage: Storage, *, start_clean: bool) -> int:
    """Start the saved agents with what they had, as far as `max_size` allows; returns how many came back."""
    try:
        data = await storage.load()
        state = None if data is None else decode(data, str(storage), core.type.name)
    except StateRefused as error:
        if not start_clean:
            raise
        log.warning("pool.state_ignored", extra={"pool": core.name, "error": str(error)})
        return 0
    if state is None:
        return 0
    core.before = _of_earlier_lives(state.counters)
    calls = []
    missing = [saved for saved in state.agents if saved.agent_id not in core.members]
    await _make_room(core, spawner, len(missing))
    for saved in missing:
        if saved.agent_id in core.members or core.room <= 0 or core.closing:
            continue
        member, call = spawner.begin(id=saved.agent_id, state=saved.state)
        member.requests, member.recycles, member.errors = saved.requests, saved.recycles, saved.errors
        calls.append(call)
    return sum([(await call.ended()).well for call in calls])


def _of_earlier_lives(saved: Counters) -> Counters:
    """Return the counters as they are after the end of that life: every agent has ended, and no lease is out."""
    return msgspec.structs.replace(saved, released=saved.acquired, terminated=saved.spawned)


async def _make_room(core: Core, spawner: Spawner, wanted: int) -> None:
    """End agents that were never used until `wanted` have room, as far as there are such, and wait until they stopped.

    Meanwhile nobody else gets these places.
    """
    leaving: list[asyncio.Task[None]] = []
    for member in [member for member in core.members.values() if not member.requests]:
        if len(leaving) >= wanted - core.room:
            break
        if member.state is S.IDLE:
            leaving.append(core.end(member, "makes way for a saved agent", refill=False))
        elif member.state is S.STARTING and not spawner.is_wanted(member):
            leaving.append(spawner.call_off(member, "makes way for a saved agent"))
    if leaving:
        reserved = min(wanted, core.room + len(leaving))
        core.reserved += reserved
        try:
            await asyncio.wait(leaving)
        finally:
            core.reserved -= reserved
