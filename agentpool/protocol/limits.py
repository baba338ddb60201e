"""What one tenant may use of a pool: data, and the words in which it stands in Redis."""

import math
from collections.abc import Mapping

import msgspec

from agentpool.errors import InvalidInput, nearest

__all__ = ["TenantLimits", "TenantUsage", "check_limits", "decode_limits", "encode_limits"]


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one tenant in one pool; 0 is no limit."""

    weight: float = 1.0
    """Its share of the slots, in slot time, against other tenants with work to do."""
    agents: int = 0
    """Pinned agents, live and pending; `schedule_agent` also counts all its unfinished tasks against it."""
    running: int = 0
    """Tasks at once."""
    tokens_per_minute: int = 0
    tokens_per_task: int = 0
    requests_per_minute: int = 0
    """Tasks that begin."""
    queued: int = 0
    """Tasks by type that wait; the pool's `max_queued` unless it is set."""


class TenantUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant of a pool: what it uses, and its limits (0: none)."""

    tenant: str
    agents: int
    """Pinned agents, live and waiting for a place."""
    running: int
    """Leased tasks, without those that wait for tasks of their own."""
    queued: int
    tokens_last_minute: int
    requests_last_minute: int
    mean_ms: float
    """Mean run time of its tasks by type, of late."""
    held: bool
    """It is at a limit, and waits."""
    limits: TenantLimits
    set_live: str = ""
    """The limits that were set while the pool ran, as `name=value` words."""


def check_limits(limits: Mapping[str, float | None]) -> None:
    """Raise `InvalidInput` for an unknown limit or an impossible value, naming it."""
    known = TenantLimits.__struct_fields__
    for name, value in limits.items():
        if name not in known:
            raise InvalidInput(
                f'No limit is named "{name}".{nearest(name, known)} Known: {", ".join(known)}.', f"$.{name}"
            )
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name == "weight":
            if not is_number or not 0.001 <= value <= 1000:
                raise InvalidInput(f"weight is {value!r}: it must be a number from 0.001 to 1000.", "$.weight")
        elif not is_number or value != int(value) or not 0 <= value <= 10**15:
            raise InvalidInput(f"{name} is {value!r}: it must be a whole number, 0 for no limit.", f"$.{name}")


def encode_limits(limits: Mapping[str, float]) -> str:
    """Return limits as `name=value` words, in the order of their names."""
    return " ".join(
        f"{name}={value:g}" if value < 1e6 else f"{name}={int(value)}" for name, value in sorted(limits.items())
    )


def decode_limits(text: str) -> dict[str, float]:
    """Read `name=value` words; unknown names are left out."""
    known = TenantLimits.__struct_fields__
    pairs = (word.partition("=") for word in text.split())
    values = {name: float(value) for name, _, value in pairs if name in known}
    return {name: value if name == "weight" else int(value) for name, value in values.items()}
