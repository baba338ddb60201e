"""Checks of tasks, their leases and tenants: pure functions from a survey to violations."""

from collections.abc import Iterator

from agentpool.doctor.survey import Survey
from agentpool.doctor.violations import Violation, violation
from agentpool.protocol.states import AgentStatus

__all__ = ["check_finished", "check_leases", "check_queues", "check_tasks", "check_tenants"]


def check_tasks(survey: Survey) -> Iterator[Violation]:
    """3: each unfinished task is in one queue, mailbox, timer or lease; nothing names a task that is not there."""
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
    """4: what has an outcome is in no queue and no lease, and whatever stands under a task's key can be read."""
    places = _places(survey)
    for id, task in survey.tasks.items():
        if task.finished and id in places:
            yield violation(4, id, f"is finished, but is still in {', '.join(places[id])}")
        if not task.finished and task.header is None:
            yield violation(4, id, "is neither a task nor an outcome")


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
    for id in survey.delayed:
        places.setdefault(id, []).append("those whose time has not come")
    for id, worker in survey.leases.items():
        places.setdefault(id, []).append(f"a lease of {worker}")
    return places


def check_queues(survey: Survey) -> Iterator[Violation]:
    """3: no queue is forgotten: a lane with tasks is in the index, a mailbox has its agent."""
    for queue in survey.queues:
        lane, _, tenant = queue.partition(":")
        has_turn = tenant in survey.turns.get(lane, ())
        subject = f"{survey.pool}: lane {queue}"
        if lane not in survey.lanes:
            yield violation(3, subject, "holds tasks, but is not in the index, so nobody claims them")
        elif has_turn == (tenant in survey.tenants_held):
            yield violation(3, subject, f"its tenant is {'held and has' if has_turn else 'not held, but has no'} turn")
    for lane, tenants in survey.turns.items():
        for tenant in tenants:
            if f"{lane}:{tenant}" not in survey.queues:
                yield violation(3, f"{survey.pool}: lane {lane}:{tenant}", "has a turn, but holds no tasks")
    for name in survey.mailboxes.keys() - survey.agents.keys():
        yield violation(3, f"{survey.pool}/{name}", "has a mailbox with tasks, but is not alive")


def check_tenants(survey: Survey) -> Iterator[Violation]:
    """5: a tenant's sets hold exactly its agents and its leased tasks."""
    agents: dict[str, set[str]] = {}
    for name, agent in survey.agents.items():
        agents.setdefault(agent.get("tenant", ""), set()).add(name)
    tasks: dict[str, set[str]] = {}
    for id in survey.leases:
        if (row := survey.tasks.get(id)) and row.header:
            tasks.setdefault(row.header.tenant, set()).add(id)
    for kind, expected, actual in (
        ("agents", agents, survey.tenant_agents),
        ("tasks", tasks, survey.tenant_tasks),
    ):
        for tenant in sorted(expected.keys() | actual.keys()):
            is_, should = actual.get(tenant, frozenset()), expected.get(tenant, set())
            for id in sorted(is_ - should):
                subject = f"{survey.pool}: tenant {tenant}, {id}"
                yield violation(5, subject, f"the tenant's set of {kind} names it, but it is not the tenant's")
            for id in sorted(should - is_):
                subject = f"{survey.pool}: tenant {tenant}, {id}"
                yield violation(5, subject, f"is the tenant's, but the tenant's set of {kind} lacks it")
    for tenant, waits in survey.tenant_waits.items():
        for id in sorted(waits - survey.tenant_tasks.get(tenant, frozenset())):
            yield violation(5, f"{survey.pool}: tenant {tenant}, {id}", "waits for others, but does not run")


def check_leases(survey: Survey) -> Iterator[Violation]:
    """6: leases and workers' own sets are equal, and leases of pinned agents are what the agents say they run."""
    for id, worker in survey.leases.items():
        if fault := _lease_fault(survey, id, worker):
            yield violation(6, id, fault)
    for worker, held in survey.held.items():
        for id in sorted((held.tasks | held.runs | held.cancels) - survey.leases.keys()):
            yield violation(6, id, f"is in a set of {worker}, but there is no such lease")
        for id in sorted(held.tasks | held.runs | held.cancels):
            if (owner := survey.leases.get(id, worker)) != worker:
                yield violation(6, id, f"is in a set of {worker}, but its lease is of {owner}")
    for name, agent in survey.agents.items():
        if fault := _runs_fault(survey, agent):
            yield violation(6, f"{survey.pool}/{name}", fault)


def _lease_fault(survey: Survey, id: str, worker: str) -> str:
    if worker not in survey.records:
        return f"is leased by {worker}, which is not registered"
    held, row = survey.held[worker], survey.tasks.get(id)
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
