"""A pool's state as a document: versioned, with a checksum, refused when it is damaged or of another version."""

import asyncio
import hashlib
import logging

import msgspec

from agentpool.clock import wall_ms
from agentpool.pool.core import Core
from agentpool.pool.errors import StateRefused
from agentpool.pool.member import Member
from agentpool.pool.spawner import Spawner
from agentpool.pool.states import LEASED, PooledState
from agentpool.pool.storage import Storage

__all__ = ["SaveReport", "load_state", "save_state"]

log = logging.getLogger(__name__)

FORMAT = "agentpool.pool"
VERSION = 1
NOTHING = msgspec.Raw(b"null")


class SavedAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent; `snapshot` is null when it keeps nothing or could not be asked in time."""

    agent_id: str
    requests: int
    recycles: int
    errors: int
    snapshot: msgspec.Raw = NOTHING


class SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that comes back."""

    agent_type: str
    saved_at_ms: int
    agents: list[SavedAgent]


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored; `sha256` is of the body, byte for byte."""

    format: str
    version: int
    sha256: str
    body: msgspec.Raw


class SaveReport(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of agents that were saved, and of those whose snapshot could not be had in time as they were in use."""

    saved: tuple[str, ...]
    busy: tuple[str, ...]


def encode(state: SavedState) -> bytes:
    """Return the document."""
    body = msgspec.json.encode(state)
    digest = hashlib.sha256(body).hexdigest()
    return msgspec.json.encode(Envelope(format=FORMAT, version=VERSION, sha256=digest, body=msgspec.Raw(body)))


def decode(data: bytes, place: str, agent_type: str) -> SavedState:
    """Return the state in a document; raises `StateRefused` saying what is wrong with it."""
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except msgspec.MsgspecError as error:
        raise StateRefused(place, f"it is damaged or no pool state ({error})") from None
    if envelope.format != FORMAT:
        raise StateRefused(place, f'it is a "{envelope.format}", no "{FORMAT}"')
    if envelope.version != VERSION:
        age = "older" if envelope.version < VERSION else "newer"
        raise StateRefused(place, f"its version is {envelope.version}, {age} than {VERSION}, which this program reads")
    if hashlib.sha256(bytes(envelope.body)).hexdigest() != envelope.sha256:
        raise StateRefused(place, "it is damaged: its checksum does not match")
    try:
        state = msgspec.json.decode(envelope.body, type=SavedState)
    except msgspec.MsgspecError as error:
        raise StateRefused(place, f"it cannot be read: {error}") from None
    if state.agent_type != agent_type:
        raise StateRefused(place, f"it holds agents of type {state.agent_type}, not {agent_type}")
    return state


async def save_state(core: Core, storage: Storage, timeout: float) -> SaveReport:
    """Save every agent; one in use is asked when it is given back, and after `timeout` s saved without snapshot."""
    members = [
        member
        for member in core.members.values()
        if member.state in (PooledState.IDLE, PooledState.ACTIVE, PooledState.RECYCLING)
    ]
    results = await asyncio.gather(*(_save(core, member, timeout) for member in members))
    agents = [agent for agent, _ in results]
    state = SavedState(agent_type=core.type.name, saved_at_ms=wall_ms(), agents=agents)
    await storage.save(encode(state))
    return SaveReport(
        saved=tuple(agent.agent_id for agent, asked in results if asked),
        busy=tuple(agent.agent_id for agent, asked in results if not asked),
    )


async def _save(core: Core, member: Member, timeout: float) -> tuple[SavedAgent, bool]:
    asked, snapshot = False, None
    if not member.instance.type.has_snapshot:
        asked = True
    elif await _claim(core, member, timeout):
        asked = True
        try:
            snapshot = await member.instance.snapshot()
        finally:
            core.give_back(member)
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
    if member.state is PooledState.IDLE:
        core.idle.remove(member)
        core.ledger.move(member, LEASED)
        return True
    if member.state is not PooledState.ACTIVE or member.claim:
        return False
    claim: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    member.claim = claim
    member.look()
    try:
        async with asyncio.timeout(timeout):
            return await claim
    except BaseException as error:
        if claim.done() and not claim.cancelled() and claim.result():
            core.give_back(member)  # it came together with the deadline
        member.claim = None if member.claim is claim else member.claim
        member.look()
        if isinstance(error, TimeoutError):
            return False
        raise


async def load_state(core: Core, spawner: Spawner, storage: Storage, *, start_clean: bool) -> int:
    """Start the saved agents with what they had, as far as `max_size` allows; returns how many came back."""
    data = await storage.load()
    if data is None:
        return 0
    try:
        state = decode(data, str(storage), core.type.name)
    except StateRefused as error:
        if not start_clean:
            raise
        log.warning("pool.state_ignored", extra={"pool": core.name, "error": str(error)})
        return 0
    calls = []
    unused = [member for member in core.members.values() if not member.requests]
    for saved in state.agents:
        if saved.agent_id in core.members or not _make_room(core, unused):
            continue
        state_of_agent = None if bytes(saved.snapshot) == bytes(NOTHING) else saved.snapshot
        member, call = spawner.begin(id=saved.agent_id, state=state_of_agent)
        member.requests, member.recycles, member.errors = saved.requests, saved.recycles, saved.errors
        calls.append(call)
    return sum([(await call.ended()).well for call in calls])


def _make_room(core: Core, unused: list[Member]) -> bool:
    """Tell whether there is a place for one more; an agent that was never used makes way."""
    while len(core.members) >= core.config.max_size and unused:
        member = unused.pop()
        if member.state in (PooledState.IDLE, PooledState.STARTING):
            core.end(member, "makes way for a saved agent")
    return len(core.members) < core.config.max_size
