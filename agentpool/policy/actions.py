"""What a decision may ask for, as data."""

import msgspec

__all__ = ["Action", "DrainWorker", "SetDesired", "SetRenewing", "StartWorkers"]


class SetDesired(msgspec.Struct, frozen=True):
    """Record that the pool shall have this many workers."""

    workers: int


class StartWorkers(msgspec.Struct, frozen=True):
    """Order this many workers, of this master if its host has room, on hosts with these labels."""

    count: int
    master: str = ""
    labels: tuple[str, ...] = ()


class SetRenewing(msgspec.Struct, frozen=True):
    """Record whether workers are being replaced one by one: then there may be one above the bound."""

    on: bool


class DrainWorker(msgspec.Struct, frozen=True):
    """Let this worker finish and leave; `only_idle` ones also lower the desired size."""

    process_id: str
    reason: str
    only_idle: bool = False


Action = SetDesired | SetRenewing | StartWorkers | DrainWorker
