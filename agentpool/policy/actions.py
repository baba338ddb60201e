"""What a decision may ask for, as data."""

import msgspec

__all__ = ["Action", "DrainWorker", "SetDesired", "StartWorkers"]


class SetDesired(msgspec.Struct, frozen=True):
    """Record that the pool shall have this many workers."""

    workers: int


class StartWorkers(msgspec.Struct, frozen=True):
    """Order this many workers."""

    count: int


class DrainWorker(msgspec.Struct, frozen=True):
    """Let this worker finish and leave; `only_idle` ones also lower the desired size."""

    process_id: str
    reason: str
    only_idle: bool = False


Action = SetDesired | StartWorkers | DrainWorker
