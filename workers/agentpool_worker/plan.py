"""What to do so that a worker holds what it shall hold: pure, from what Redis says and what is here."""

from collections.abc import Mapping
from enum import Enum

import msgspec

from agentpool.protocol.records import DesiredAgent, WorkerView

__all__ = ["Action", "CancelRun", "CheckMailbox", "Held", "StartAgent", "Step", "StopAgent", "diff", "next_step"]


class Step(Enum):
    """What to do with a command."""

    OBEY = "obey"
    IGNORE = "ignore"
    RESYNC = "resync"


def next_step(applied: int, version: int) -> Step:
    """Say what becomes of a command that carries `version` where `applied` is the version that is here.

    The next one is obeyed; what is known already is not; a gap means that another was missed.
    """
    if version == applied + 1:
        return Step.OBEY
    return Step.RESYNC if version > applied else Step.IGNORE


class Held(msgspec.Struct, frozen=True):
    """An agent that is here."""

    incarnation: int
    idle: bool = False


class StopAgent(msgspec.Struct, frozen=True):
    """It shall not be here any more."""

    agent_id: str


class StartAgent(msgspec.Struct, frozen=True):
    """It shall be here."""

    desired: DesiredAgent


class CheckMailbox(msgspec.Struct, frozen=True):
    """It is idle and has mail."""

    agent_id: str


class CancelRun(msgspec.Struct, frozen=True):
    """Someone wants this task cancelled; it runs here, or is on its way here with the answer to a claim."""

    task_id: str


Action = StopAgent | StartAgent | CheckMailbox | CancelRun


def diff(view: WorkerView, held: Mapping[str, Held]) -> list[Action]:
    """Return the actions, those that free slots first.

    Another incarnation of an agent that is here means that it was away in between: the old one is stopped.
    """
    wanted = {desired.agent_id: desired for desired in view.agents}
    known = {id: agent for id, agent in held.items() if id in wanted and wanted[id].incarnation == agent.incarnation}
    stops = [StopAgent(id) for id in held if id not in known]
    starts = [StartAgent(desired) for id, desired in wanted.items() if id not in known]
    mail = [CheckMailbox(id) for id, agent in known.items() if agent.idle and wanted[id].waiting]
    cancels = [CancelRun(id) for id in view.cancels]
    return [*stops, *starts, *mail, *cancels]
