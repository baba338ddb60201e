"""Mending what can be mended safely, and saying what was done and what was not.

Each remedy is a script that finds out by itself what is so when it runs, and may be repeated: what has changed since it
was looked at is not spoilt, and a pool may be at work meanwhile. One fault may hide another, so it is looked again.
"""

import msgspec

from agentpool.doctor.examining import examine
from agentpool.doctor.remedies import Remedy, Untreated, remedies_for
from agentpool.doctor.survey import Survey, take_surveys
from agentpool.doctor.violations import Violation
from agentpool.store import Store

__all__ = ["Left", "Mended", "Report", "repair"]

ROUNDS_MAX = 4


class Mended(msgspec.Struct, frozen=True):
    """A fault and what was done about it."""

    invariant: int
    subject: str
    detail: str
    did: str


class Left(msgspec.Struct, frozen=True):
    """A fault that is still there, why, and what to do."""

    invariant: int
    subject: str
    detail: str
    why: str
    next_step: str


class Report(msgspec.Struct, frozen=True):
    """What doctor did, and what does not hold afterwards."""

    mended: list[Mended]
    left: list[Left]
    violations: list[Violation]


async def repair(store: Store, *, local: bool = True, settle: float | None = None) -> Report:
    """Examine, mend, and examine again; see `examine` for the arguments."""
    mended: dict[tuple[int, str, str], Mended] = {}
    found = await examine(store, local=local, settle=settle)
    for _ in range(ROUNDS_MAX):
        done = await _mend(store, found) if found else []
        if not done:
            break
        mended.update({(one.invariant, one.subject, one.did): one for one in done})
        found = await examine(store, local=local, settle=settle)
    surveys = await take_surveys(store)
    return Report(list(mended.values()), [_left(surveys, fault) for fault in found], found)


async def _mend(store: Store, faults: list[Violation]) -> list[Mended]:
    surveys = await take_surveys(store)
    done = []
    for fault in faults:
        survey = _survey_of(surveys, fault)
        remedy = remedies_for(survey, fault) if survey else None
        if survey and isinstance(remedy, Remedy):
            await _apply(store, survey.pool, remedy)
            done.append(Mended(fault.invariant, fault.subject, fault.detail, remedy.did))
    return done


async def _apply(store: Store, pool: str, remedy: Remedy) -> None:
    """Do what a remedy says."""
    mending = store.mending
    match remedy.door:
        case "listed" | "unlisted":
            await mending.list_pool(pool, listed=remedy.door == "listed")
        case "pool":
            await mending.pool(pool, remedy.rows)
        case "workers":
            await mending.workers(pool, remedy.rows)
        case "agents":
            await mending.agents(pool, remedy.rows)
        case "tasks":
            await mending.tasks(pool, remedy.rows)
        case "tenants":
            await mending.tenants(pool, remedy.rows)


def _left(surveys: dict[str, Survey], fault: Violation) -> Left:
    survey = _survey_of(surveys, fault)
    remedy = remedies_for(survey, fault) if survey else None
    match remedy:
        case Untreated(why, next_step):
            pass
        case Remedy():
            why = "it was not there any more when it was to be mended, or it came back afterwards"
            next_step = "run doctor again; if it stays, find out who else writes to Redis, and report this"
        case _:
            why, next_step = "its pool is not there any more", "run doctor again"
    return Left(fault.invariant, fault.subject, fault.detail, why, next_step)


def _survey_of(surveys: dict[str, Survey], fault: Violation) -> Survey | None:
    """Return the survey of the pool that a fault is about."""
    subject = fault.subject
    for pool, survey in surveys.items():
        ours = (*survey.workers, *survey.records, *survey.held, *survey.lost, *survey.processes)
        if subject == pool or subject.startswith((f"{pool}/", f"{pool}: ")) or subject in ours:
            return survey
    return None
