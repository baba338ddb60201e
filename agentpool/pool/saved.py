"""A pool's state as a document: versioned, with a checksum, refused when it is damaged or of another version."""

import hashlib

import msgspec

from agentpool.pool.errors import StateRefused
from agentpool.pool.figures import Counters

__all__ = ["SavedAgent", "SavedState", "decode", "encode"]

FORMAT = "agentpool.pool"
VERSION = 2
"""1 had no counters."""
NOTHING = msgspec.Raw(b"null")


class SavedAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent; `snapshot` is null when it keeps nothing or could not be asked in time."""

    agent_id: str
    requests: int
    recycles: int
    errors: int
    snapshot: msgspec.Raw = NOTHING

    @property
    def state(self) -> msgspec.Raw | None:
        """What the agent is given back, if there is anything."""
        return None if bytes(self.snapshot) == bytes(NOTHING) else self.snapshot


class SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that comes back."""

    agent_type: str
    saved_at_ms: int
    counters: Counters
    agents: list[SavedAgent]


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored; `sha256` is of the body, byte for byte."""

    format: str
    version: int
    sha256: str
    body: msgspec.Raw


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
