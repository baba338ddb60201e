"""What to do about each violation: a pure function from a survey and a fault to a remedy, or to why there is none."""

import re
from collections.abc import Iterator

import msgspec

from agentpool.doctor.survey import Survey
from agentpool.doctor.violations import Violation

__all__ = ["Remedy", "Untreated", "remedies_for"]


class Remedy(msgspec.Struct, frozen=True):
    """Something for `store.mending`: which of its doors, for which rows; `did` says in words what it comes to."""

    door: str
    rows: tuple[str, ...]
    did: str


class Untreated(msgspec.Struct, frozen=True):
    """A fault that is left as it is: why, and what to do."""

    why: str
    next_step: str


_TENANT = re.compile(r"^(?P<pool>[^:]+): tenant (?P<tenant>\S+), (?P<id>\S+)$")
_KIND = re.compile(r"set of (\w+)")


def remedies_for(survey: Survey, fault: Violation) -> Remedy | Untreated:
    """Return what mends a fault of this survey's pool."""
    match fault.invariant:
        case 1:
            return _indexes(survey, fault)
        case 2:
            return _agents(survey, _names(survey, fault.subject))
        case 3 | 4:
            return _tasks(survey, fault)
        case 5:
            return _tenants(fault)
        case 6:
            return _leases(survey, fault)
        case 7:
            return _fences(survey, fault)
        case 8:
            return _processes(fault)
        case _:
            return Untreated(
                "more was accepted than the setting allows now, and nothing accepted is thrown away",
                "raise the setting, start more workers, or wait until the queue is shorter",
            )


def _indexes(survey: Survey, fault: Violation) -> Remedy | Untreated:
    if fault.subject == survey.pool:
        if survey.is_listed:
            return Remedy("unlisted", (survey.pool,), "taken out of the list of pools")
        return Remedy("listed", (survey.pool,), "put into the list of pools")
    held = survey.held.get(fault.subject)
    if fault.subject not in survey.records and held and (held.agents or held.tasks or held.runs):
        return Remedy("workers", (fault.subject,), "marked as lost, so that the leader gives back what it held")
    return Remedy("workers", (fault.subject,), "free slots and indexes written anew from its record and its sets")


def _agents(survey: Survey, names: list[str]) -> Remedy:
    rows = []
    for name in names:
        places = ["-"] if name in survey.pending else []
        places += [worker for worker, held in survey.held.items() if name in held.agents]
        rows.append(" ".join([name, *places]))
    return Remedy("agents", tuple(rows), "left in one place; where none was right, placed again as a new incarnation")


def _names(survey: Survey, subject: str) -> list[str]:
    return [subject.removeprefix(f"{survey.pool}/")]


def _tasks(survey: Survey, fault: Violation) -> Remedy | Untreated:
    if fault.subject == survey.pool or fault.subject.startswith(f"{survey.pool}: lane "):
        return Remedy("pool", tuple(_queues(survey)), "turns and the count of waiting tasks written anew")
    if "neither a task nor an outcome" in fault.detail:
        return Untreated(
            "what stands under its key cannot be read, so it is not known what it was",
            f"look: redis-cli GET task:{fault.subject}; then delete that key",
        )
    if "is a dead letter, but unfinished" in fault.detail:
        return Untreated(
            "it would be tried again and is given up as well; which of the two was meant is not known",
            f"purge the letter, or cancel the task: agentpool dead purge {fault.subject}; agentpool tasks cancel",
        )
    name = fault.subject.removeprefix(f"{survey.pool}/")
    if "has a mailbox with tasks, but is not alive" in fault.detail:
        ids = sorted(survey.mailboxes.get(name, ()))
        return Remedy("tasks", tuple(_row(survey, id) for id in ids), "its tasks ended as agent_terminated")
    return Remedy("tasks", (_row(survey, fault.subject),), "left in one place if unfinished, in none if finished")


def _row(survey: Survey, id: str) -> str:
    return " ".join([id, *_places(survey, id)])


def _places(survey: Survey, id: str) -> Iterator[str]:
    """Yield the places that name a task and are not known from the task itself."""
    for kind, queues in (("lane", survey.queues), ("mailbox", survey.mailboxes)):
        yield from (f"{kind}={queue}" for queue, ids in queues.items() if id in ids)
    for worker, held in survey.held.items():
        if id in held.tasks | held.runs | held.cancels | held.waits:
            yield f"worker={worker}"


def _queues(survey: Survey) -> list[str]:
    with_turns = {f"{lane}:{tenant}" for lane, tenants in survey.turns.items() for tenant in tenants}
    return sorted(survey.queues.keys() | with_turns)


def _tenants(fault: Violation) -> Remedy | Untreated:
    found, kind = _TENANT.match(fault.subject), _KIND.search(fault.detail)
    if not found or not kind:
        return Untreated("it cannot be told what is meant", "report this as a defect of doctor")
    return Remedy("tenants", (f"{found['tenant']} {kind[1]} {found['id']}",), "the tenant's set written anew")


def _leases(survey: Survey, fault: Violation) -> Remedy | Untreated:
    name = fault.subject.removeprefix(f"{survey.pool}/")
    if fault.subject in survey.workers or fault.subject in survey.lost:
        return Untreated(
            "giving up a worker is its leader's or its own master's to decide, who see more than Redis",
            "see that an agentpool-master leads the pool: agentpool pools; its log says why it waits",
        )
    if name in survey.agents and fault.subject not in survey.tasks:
        return _agents(survey, [name])
    return Remedy("tasks", (_row(survey, fault.subject),), "its lease and its worker's sets agree, or it waits again")


def _fences(survey: Survey, fault: Violation) -> Remedy | Untreated:
    if "went back" in fault.detail:
        return Untreated(
            "something that only grows was set back; the server may have lost its latest writes, or data was restored",
            "nothing, if the server was restarted just now; else find out who wrote to Redis",
        )
    if fault.subject == survey.pool:
        return Remedy("pool", tuple(_queues(survey)), "the last fence given set to that of the lock")
    return _agents(survey, _names(survey, fault.subject))


def _processes(fault: Violation) -> Untreated:
    if "runs, but is not registered" in fault.detail:
        pid = re.search(r"process (\d+)", fault.detail)
        return Untreated(
            "doctor ends no processes: this one may belong to another installation's data",
            f"look at it, and end it: kill {pid[1] if pid else 'its pid'}",
        )
    return Untreated(
        "its own master gives back what it held, as soon as it looks",
        "start agentpool-master on this host, or wait for another host's to reap it",
    )
