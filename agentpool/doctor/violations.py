"""A fault that doctor names, and the list of what must hold."""

import msgspec

__all__ = ["NAMES", "Violation", "violation"]

NAMES = {
    1: "free slots and indexes",
    2: "each agent in one place",
    3: "each unfinished task in one place",
    4: "one outcome, and then no more work",
    5: "tenant sets",
    6: "leases and beats",
    7: "fences and incarnations only grow",
    8: "processes and registry agree",
    9: "queues within their bounds",
}


class Violation(msgspec.Struct, frozen=True):
    """One invariant that does not hold for one subject: a worker, agent, task, tenant, queue, process or pool."""

    invariant: int
    name: str
    subject: str
    detail: str


def violation(invariant: int, subject: str, detail: str) -> Violation:
    """Return a violation of the invariant with this number."""
    return Violation(invariant, NAMES[invariant], subject, detail)
