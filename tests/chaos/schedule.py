"""Which faults come when: pure, so that a seed says it all.

Kinds are dealt like cards, so that each comes in turn; how often is its number of cards. A fault may begin while an
earlier one is at work, but not two on the server: what became of both could not be told apart.
"""

import random
from collections.abc import Iterator
from enum import StrEnum

import msgspec

__all__ = ["LONG_FREEZE_S", "SERVER_KINDS", "Fault", "Kind", "Timing", "make_schedule"]


class Kind(StrEnum):
    """What is done to whom."""

    WORKER_KILL = "worker killed"
    WORKERS_KILL = "two workers killed at once"
    WORKER_STOP = "worker stopped for a moment"
    WORKER_FREEZE = "worker stopped past its heartbeat timeout"
    WORKER_DRAIN = "worker drained"
    LEADER_KILL = "leader killed"
    FOLLOWER_KILL = "other master killed"
    LEADER_FREEZE = "leader stopped past its lease"
    LEADER_RESTART = "leader stopped on purpose and started"
    ZYGOTE_KILL = "zygote killed"
    ZYGOTE_STOP = "zygote stopped, and a worker killed"
    SERVER_KILL = "server killed and started"
    SERVER_RESTART = "server shut down and started"
    SERVER_STOP = "server stopped"
    SERVER_FREEZE = "server stopped for 30 s"
    CLIENT_PAUSE = "CLIENT PAUSE"
    SCRIPT_FLUSH = "SCRIPT FLUSH"
    FUNCTION_FLUSH = "FUNCTION FLUSH"
    CLIENT_KILL = "CLIENT KILL of all connections"
    REPLIES_DROPPED = "replies dropped"
    LINK_SLOW = "link slow"
    PARTITION = "host cut off for a moment"
    PARTITION_LONG = "host cut off past the heartbeat timeout"


SERVER_KINDS = frozenset(
    {Kind.SERVER_KILL, Kind.SERVER_RESTART, Kind.SERVER_STOP, Kind.SERVER_FREEZE, Kind.CLIENT_PAUSE}
)
"""What keeps the server from answering."""

LONG_FREEZE_S = 30.0
LONG_RUN_S = 600.0
"""A run as long as this has every kind, and the server is stopped for 30 s once."""
REST_S = (3.6, 4.2)
"""Between blocks of faults: enough for each to be over, and for one that stands alone to be measured."""
ALONE = 0.65
"""The share of blocks that are one fault alone; others are two to four."""

_CARDS = {
    Kind.WORKER_KILL: 4,
    Kind.WORKERS_KILL: 1,
    Kind.WORKER_STOP: 1,
    Kind.WORKER_FREEZE: 1,
    Kind.WORKER_DRAIN: 1,
    Kind.LEADER_KILL: 2,
    Kind.FOLLOWER_KILL: 1,
    Kind.LEADER_FREEZE: 1,
    Kind.LEADER_RESTART: 1,
    Kind.ZYGOTE_KILL: 1,
    Kind.ZYGOTE_STOP: 1,
    Kind.SERVER_KILL: 1,
    Kind.SERVER_RESTART: 1,
    Kind.SERVER_STOP: 1,
    Kind.CLIENT_PAUSE: 1,
    Kind.SCRIPT_FLUSH: 1,
    Kind.FUNCTION_FLUSH: 1,
    Kind.CLIENT_KILL: 1,
    Kind.REPLIES_DROPPED: 2,
    Kind.LINK_SLOW: 1,
    Kind.PARTITION: 1,
    Kind.PARTITION_LONG: 1,
}

_AFTER_S = {
    Kind.LEADER_KILL: 2.0,
    Kind.FOLLOWER_KILL: 2.0,
    Kind.LEADER_RESTART: 4.0,
    Kind.SERVER_FREEZE: 7.0,
    Kind.WORKER_DRAIN: 1.0,
    Kind.ZYGOTE_STOP: 1.0,
}
"""What it takes until a master that was started runs, or all is as before."""


class Timing(msgspec.Struct, frozen=True):
    """What durations depend on, in s."""

    heartbeat_timeout: float = 4.0
    leader_lease: float = 2.0


class Fault(msgspec.Struct, frozen=True):
    """One fault: `at` s after the beginning, for `seconds`. `pick` in [0, 1) says who of those there are, `way` how."""

    number: int
    kind: Kind
    at: float
    seconds: float
    pick: float
    way: float

    @property
    def ends(self) -> float:
        """When it is over, in s after the beginning."""
        return self.at + self.seconds


def make_schedule(seed: int, seconds: float, timing: Timing | None = None) -> list[Fault]:
    """Return the faults of a run of so many s, in their order; the last ends before the run does."""
    timing = timing or Timing()
    dice = random.Random(f"schedule {seed}")
    deck = _dealt(dice)
    freeze_at = seconds * dice.uniform(0.3, 0.6) if seconds >= LONG_RUN_S else seconds
    faults: list[Fault] = []
    at = dice.uniform(1.0, 2.0)
    while True:
        if at >= freeze_at:
            freeze_at, kinds = seconds, [Kind.SERVER_FREEZE]
        else:
            kinds = [next(deck) for _ in range(1 if dice.random() < ALONE else dice.randint(2, 4))]
        block = list(_block(at, kinds, dice, timing))
        over = max(begins + length + _AFTER_S.get(kind, 0.0) for kind, begins, length in block)
        if over > seconds:
            return faults
        for kind, begins, length in block:
            faults.append(Fault(len(faults), kind, round(begins, 3), round(length, 3), dice.random(), dice.random()))
        at = over + dice.uniform(*REST_S)


def _block(at: float, kinds: list[Kind], dice: random.Random, timing: Timing) -> Iterator[tuple[Kind, float, float]]:
    """Yield the kinds of one block with when each begins and how long it takes: they overlap, or nearly so."""
    server_free = at
    for kind in kinds:
        length = _length(kind, dice, timing)
        if kind in SERVER_KINDS:
            at = max(at, server_free)
            server_free = at + length + 2.0
        yield kind, at, length
        at += dice.uniform(0.1, 1.5) + (length if dice.random() < 0.5 else 0.0)


def _dealt(dice: random.Random) -> Iterator[Kind]:
    while True:
        cards = [kind for kind, count in _CARDS.items() for _ in range(count)]
        dice.shuffle(cards)
        yield from cards


def _length(kind: Kind, dice: random.Random, timing: Timing) -> float:
    match kind:
        case Kind.SERVER_FREEZE:
            return LONG_FREEZE_S
        case Kind.WORKER_FREEZE:
            return timing.heartbeat_timeout + dice.uniform(1.0, 4.0)
        case Kind.PARTITION_LONG:
            return timing.heartbeat_timeout + dice.uniform(2.0, 7.0)
        case Kind.LEADER_FREEZE:
            return timing.leader_lease + dice.uniform(1.0, 3.0)
        case Kind.SERVER_STOP | Kind.CLIENT_PAUSE:
            return dice.uniform(0.3, 4.0)
        case Kind.WORKER_STOP | Kind.PARTITION:
            return dice.uniform(0.3, timing.heartbeat_timeout / 2)
        case Kind.REPLIES_DROPPED | Kind.LINK_SLOW | Kind.ZYGOTE_STOP:
            return dice.uniform(1.0, 4.0)
        case Kind.LEADER_KILL | Kind.FOLLOWER_KILL:
            return dice.uniform(0.2, timing.leader_lease + 2.0)
        case Kind.SERVER_KILL | Kind.SERVER_RESTART:
            return dice.uniform(0.0, 1.5)
        case _:
            return 0.0
