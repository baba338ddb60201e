"""Checks of tasks, their leases and tenants: pure functions from a survey to violations."""

import re
from collections.abc import Iterable, Iterator

from agentpool.doctor.survey import Survey
from agentpool.doctor.violations import Violation, violation
from agentpool.protocol.states import AgentStatus

__all__ = ["check_finished", "check_leases", "check_queues", "check_tasks", "check_tenants"]

_LEASE = re.compile(r"\S+ \d+(\.\d+)? \d+ task .+ \d+")


def check_tasks(survey: Survey) -> Iterator[Violation]:
    """3: each unfinished task is in one queue, one mailbox or one lease, or delayed, or among the suspects; nothing
    names a task that is not there.
    """
    places = _places(survey)
    for id in places.keys() - survey.tasks.keys():
        yield violation(3, id, f"has no record, but is named by {', '.join(places[id])}")
    for id, task in survey.tasks.items():
        found = places.get(id, [])
        if task.header and len(found) != 1:
            yield violation(
                3,
                id,
                f"is unfinished and must be in one place, but is in {len(found)}: {', '.join(found) or 'nowhere'}",
            )


def check_finished(survey: Survey) -> Iterator[Violation]:
    """4: what has an outcome is in no place and no timer, nothing of its attempts is kept, and dead letters are of such
    tasks; whatever stands under a task's key can be read.
    """
    places = _places(survey)
    for id, task in survey.tasks.items():
        if task.finished and id in places:
            yield violation(4, id, f"is finished, but is still in {', '.join(places[id])}")
        if not task.finished and task.header is None:
            yield violation(4, id, "is neither a task nor an outcome")
    unfinished = {id for id, task in survey.tasks.items() if task.header}
    for timer in survey.due:
        kind, _, id = timer.partition(" ")
        if kind in ("expire", "promote") and id not in unfinished:
            yield violation(4, id, f'is not unfinished, but has the timer "{kind}"')
    for id in sorted(survey.attempts.keys() - unfinished):
        yield violation(4, id, "is not unfinished, but its attempts are counted")
    for id in sorted(survey.letters & unfinished):
        yield violation(4, id, "is a dead letter, but unfinished")
    for id in sorted(survey.letters ^ survey.dead):
        where = "stands among the dead letters, but there is none" if id in survey.dead else "is in no index"
        yield violation(4, id, f"as a dead letter: {where}")


def _places(survey: Survey) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for name, ids in survey.mailboxes.items():
        for id in ids:
            places.setdefault(id, []).append(f"the mailbox of {name}")
    for lane, ids in survey.queues.items():
        for id in ids:
            places.setdefault(id, []).append(f"lane {lane}")
    for id in survey.suspects:
        places.setdefault(id, []).append("those that shall run alone")
    for timer in survey.due:
        kind, _, id = timer.partition(" ")
        if kind == "start":
            places.setdefault(id, []).append("those that are delayed")
    for id, worker in survey.leases.items():
        places.setdefault(id, []).append(f"a lease of {worker}")
    return places


def check_queues(survey: Survey) -> Iterator[Violation]:
    """3: no queue is forgotten: a tenant with tasks in a lane has a turn there or is held, a mailbox has its agent; and
    the pool knows how many tasks its queues hold.
    """
    for queue, ids in survey.queues.items():
        if fault := _queue_fault(survey, queue):
            yield violation(3, f"{survey.pool}: lane {queue}", fault)
        for id in sorted(ids):
            header = survey.tasks[id].header if id in survey.tasks else None
            if header and queue != (belongs := f"{header.lane}:{header.tenant}"):
                yield violation(3, id, f"is of lane {belongs}, but waits in lane {queue}")
    for lane, tenants in survey.turns.items():
        for tenant in sorted(tenants):
            if f"{lane}:{tenant}" not in survey.queues:
                yield violation(3, f"{survey.pool}: lane {lane}:{tenant}", "has a turn, but holds no tasks")
    queued, said = sum(map(len, survey.queues.values())), int(survey.info.get("queued") or 0)
    if queued != said:
        yield violation(3, survey.pool, f"its queues hold {queued} tasks, but it says {said}")
    for name in survey.mailboxes.keys() - survey.agents.keys():
        yield violation(3, f"{survey.pool}/{name}", "has a mailbox with tasks, but is not alive")


def _queue_fault(survey: Survey, queue: str) -> str:
    lane, _, tenant = queue.rpartition(":")
    has_turn, is_held = tenant in survey.turns.get(lane, ()), tenant in survey.held_tenants
    if lane not in survey.lanes:
        return "holds tasks, but is not known, so nobody takes them"
    if has_turn and is_held:
        return "its tenant is held, but has a turn"
    return "" if has_turn or is_held else "holds tasks, but its tenant has no turn and is not held"


def check_tenants(survey: Survey) -> Iterator[Violation]:
    """5: a tenant's sets hold exactly its agents, its delayed tasks, its leased ones, and of these those that wait for
    others.
    """
    agents: dict[str, set[str]] = {}
    for name, agent in survey.agents.items():
        agents.setdefault(agent.get("tenant", ""), set()).add(name)
    tasks = _by_tenant(survey, survey.leases)
    delayed = _by_tenant(survey, (timer.partition(" ")[2] for timer in survey.due if timer.startswith("start ")))
    waiting = frozenset().union(*(held.waits for held in survey.held.values()))
    waits = {tenant: ids & waiting for tenant, ids in tasks.items()}
    for kind, expected, actual in (
        ("agents", agents, survey.tenant_agents),
        ("tasks", tasks, survey.tenant_tasks),
        ("waits", waits, survey.tenant_waits),
        ("delayed", delayed, survey.tenant_delayed),
    ):
        for tenant in sorted(expected.keys() | actual.keys()):
            is_, should = actual.get(tenant, frozenset()), expected.get(tenant, set())
            for id in sorted(is_ - should):
                subject = f"{survey.pool}: tenant {tenant}, {id}"
                yield violation(5, subject, f"the tenant's set of {kind} names it, but it is not the tenant's")
            for id in sorted(should - is_):
                subject = f"{survey.pool}: tenant {tenant}, {id}"
                yield violation(5, subject, f"is the tenant's, but the tenant's set of {kind} lacks it")


def _by_tenant(survey: Survey, ids: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for id in ids:
        if (row := survey.tasks.get(id)) and row.header:
            found.setdefault(row.header.tenant, set()).add(id)
    return found


def check_leases(survey: Survey) -> Iterator[Violation]:
    """6: leases and workers' own sets are equal, and leases of pinned agents are what the agents say they run."""
    for id, worker in survey.leases.items():
        if fault := _lease_fault(survey, id, worker):
            yield violation(6, id, fault)
    for worker, held in survey.held.items():
        named = held.tasks | held.runs | held.cancels | held.waits
        for id in sorted(named - survey.leases.keys()):
            yield violation(6, id, f"is in a set of {worker}, but there is no such lease")
        for id in sorted(named):
            if (owner := survey.leases.get(id, worker)) != worker:
                yield violation(6, id, f"is in a set of {worker}, but its lease is of {owner}")
    for name, agent in survey.agents.items():
        if fault := _runs_fault(survey, agent):
            yield violation(6, f"{survey.pool}/{name}", fault)


def _lease_fault(survey: Survey, id: str, worker: str) -> str:
    if worker not in survey.records:
        return f"is leased by {worker}, which is not registered"
    held, row = survey.held[worker], survey.tasks.get(id)
    if not _LEASE.fullmatch(survey.lease_words[id]):
        return f"its lease is {survey.lease_words[id]!r}, which is not worker, ms, tokens, the task's header and rank"
    if (id in held.tasks) + (id in held.runs) != 1:
        return f"is leased by {worker}, but is in {(id in held.tasks) + (id in held.runs)} of its sets"
    if row and row.header and (id in held.runs) != bool(row.header.agent_name):
        return f"is in the wrong set of {worker}: `tasks` are by type, `runs` are of pinned agents"
    return ""


def _runs_fault(survey: Survey, agent: dict[str, str]) -> str:
    task, active = agent.get("task_id", ""), agent.get("status") == AgentStatus.ACTIVE
    if active != bool(task):
        return f"is {agent.get('status')}, but its task is {task!r}"
    if task and survey.leases.get(task) != agent.get("process_id"):
        return f"says that it runs {task}, but {agent.get('process_id')} has no lease of it"
    return ""
