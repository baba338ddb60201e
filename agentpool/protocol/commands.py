"""Messages on channels: two closed unions with one decoder each.

Commands go to workers and are hints: what shall be is in the sets, and a worker that missed one finds out by its next
beat. `version` is the worker's version after the change; a gap tells the worker that it missed something. Replies go
to clients; a client that missed one reads the record.
"""

import msgspec

from agentpool.protocol.tasks import Outcome

__all__ = [
    "AgentEnded",
    "AgentReady",
    "Cancel",
    "Command",
    "Drain",
    "Reply",
    "Run",
    "Shutdown",
    "Spawn",
    "TasksDone",
    "Terminate",
    "Wake",
    "decode_command",
    "decode_reply",
]


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    process_id: str
    version: int = 0


class Spawn(_Command, frozen=True):
    """Start this agent; the fields are those of its record."""

    agent_id: str
    agent_type: str
    incarnation: int
    tenant: str = "default"
    project: str = ""
    max_idle_ms: int = 0
    heartbeat_ms: int = 0


class Terminate(_Command, frozen=True):
    """End this agent for good."""

    agent_id: str


class Drain(_Command, frozen=True):
    """Take nothing new, finish, hand the agents over, exit."""


class Shutdown(_Command, frozen=True):
    """The worker is no longer registered: exit at once."""


class Wake(_Command, frozen=True):
    """There is a task: in this agent's mailbox, or, without an agent, in a lane."""

    agent_id: str = ""


class Run(_Command, frozen=True):
    """Carry out these tasks by type, which this worker has from now on."""

    tasks: tuple[str, ...] = ()
    """Of each its id, its record, and `attempt starts tokens_per_task` or ''. Left out where others listen."""


class Cancel(_Command, frozen=True):
    """Cancel this running task."""

    task_id: str


Command = Spawn | Terminate | Drain | Shutdown | Wake | Run | Cancel


class _Reply(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class AgentReady(_Reply, frozen=True, tag="agent_ready"):
    """The agent's `start()` finished on this worker."""

    agent_id: str
    process_id: str


class AgentEnded(_Reply, frozen=True, tag="agent_ended"):
    """The agent ended before it was ready."""

    agent_id: str
    status: str
    detail: str = ""


class TasksDone(_Reply, frozen=True, tag="tasks_done"):
    """Tasks have outcomes: (id, outcome) each; one that is too large to come along is null and to be fetched."""

    tasks: tuple[tuple[str, Outcome | None], ...]


Reply = AgentReady | AgentEnded | TasksDone

_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def decode_command(raw: bytes | str) -> Command:
    """Decode one message of a worker's channel; raises `msgspec.DecodeError` for anything unknown."""
    return _commands.decode(raw)


def decode_reply(raw: bytes | str) -> Reply:
    """Decode one message of a client's channel; raises `msgspec.DecodeError` for anything unknown."""
    return _replies.decode(raw)
