"""Reading several times, and naming what is wrong each time: a system in motion is not a broken one."""

import asyncio
from collections.abc import Collection

from agentpool.doctor.checks import (
    check_agents,
    check_beats,
    check_bounds,
    check_fences,
    check_growth,
    check_list,
    check_slots,
)
from agentpool.doctor.processes import check_processes, local_workers
from agentpool.doctor.survey import Survey, take_surveys
from agentpool.doctor.violations import Violation
from agentpool.doctor.work_checks import check_finished, check_leases, check_queues, check_tasks, check_tenants
from agentpool.store import Store

__all__ = ["examine"]

PAUSE_S = 0.1
PAUSES = (1, 2, 3)
"""Between looks, in units: a suspicion has to last, as a worker that was told to leave takes a moment to end."""

CHECKS = (
    check_list,
    check_slots,
    check_agents,
    check_tasks,
    check_queues,
    check_finished,
    check_tenants,
    check_leases,
    check_beats,
    check_fences,
    check_bounds,
)


async def examine(store: Store, *, local: bool = True, settle: float | None = None) -> list[Violation]:
    """Check all invariants and return what does not hold, by number; changes nothing.

    What is under way is no fault: it counts only when it is there at each of several looks within `settle` s, 0.6
    unless given. With `local`, processes of this host are compared with the registry.
    """
    unit = PAUSE_S if settle is None else settle / sum(PAUSES)
    before = await take_surveys(store)
    suspects = await _faults(store, before.values(), local=local)
    shrunk: list[Violation] = []
    for pause in PAUSES:
        if pause > PAUSES[0] and not suspects:
            break
        await asyncio.sleep(unit * pause)
        after = await take_surveys(store)
        seen = {_key(fault) for fault in suspects}
        suspects = [fault for fault in await _faults(store, after.values(), local=local) if _key(fault) in seen]
        shrunk += [fault for pool in after.keys() & before.keys() for fault in check_growth(before[pool], after[pool])]
        before = after
    return sorted({*suspects, *shrunk}, key=lambda fault: (fault.invariant, fault.subject, fault.detail))


async def _faults(store: Store, surveys: Collection[Survey], *, local: bool) -> list[Violation]:
    faults = [fault for survey in surveys for check in CHECKS for fault in check(survey)]
    if local and (install := await _install_id(store)):
        running = await asyncio.to_thread(local_workers, install)
        faults += check_processes(surveys, running)
    return faults


async def _install_id(store: Store) -> str:
    """Return the id of the installation, without making one as the store would."""
    redis, key = store.connection.redis, store.keys.install()
    return str(await store.connection.repeat(lambda: redis.get(key)) or "")


def _key(fault: Violation) -> tuple[int, str]:
    return fault.invariant, fault.subject
