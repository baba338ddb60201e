"""Checks of workers and pinned agents: pure functions from a survey to violations."""

from collections.abc import Collection, Iterator

from agentpool.doctor.survey import Survey
from agentpool.doctor.violations import Violation, violation
from agentpool.protocol.limits import decode_limits
from agentpool.protocol.states import AgentStatus, WorkerStatus

__all__ = ["check_agents", "check_beats", "check_bounds", "check_fences", "check_growth", "check_list", "check_slots"]

AHEAD = 50
"""Tasks that a worker may hold beyond its slots."""
SLACK_MS = 2000
"""Beyond the times that are promised, for a leader's tick and a slow machine."""

W = WorkerStatus


def check_list(survey: Survey) -> Iterator[Violation]:
    """1: the list of pools names those that are in service."""
    status = survey.info.get("status", "")
    in_service = bool(status) and status != "removed"
    if in_service and not survey.is_listed:
        yield violation(1, survey.pool, "is in service, but the list of pools lacks it")
    if survey.is_listed and not in_service:
        yield violation(1, survey.pool, f"is {status or 'without settings'}, but the list of pools names it")


def check_slots(survey: Survey) -> Iterator[Violation]:
    """1: each worker that takes agents stands in the index with its free slots, and no other worker does."""
    for worker, held in survey.held.items():
        record = survey.records.get(worker, {})
        status, capacity = record.get("status", ""), int(record.get("capacity") or 0)
        free = max(0, capacity - len(held.agents) - len(held.tasks))
        score = survey.processes.get(worker)
        if status == W.READY and score != free:
            yield violation(1, worker, f"has {free} free slots, but the index says {_shown(score)}")
        if status != W.READY and score is not None:
            yield violation(1, worker, f"is {status or 'not registered'}, but stands in the index of free slots")
        if status in (W.READY, W.DRAINING):
            for field, count in (("agent_count", len(held.agents)), ("available", free)):
                if (said := record.get(field, str(count))) != str(count):
                    yield violation(1, worker, f"its {field} is {said}, but should be {count}")
        yield from _check_indexes(survey, worker, status)


def _check_indexes(survey: Survey, worker: str, status: str) -> Iterator[Violation]:
    """Each index holds exactly the workers of its states, and whatever it holds has a record."""
    belongs = {
        "workers": status in (W.ORDERED, W.STARTING, W.READY, W.DRAINING),
        "starting": status in (W.ORDERED, W.STARTING),
        "draining": status == W.DRAINING,
        "lost": status == W.LOST,
    }
    for index, expected in belongs.items():
        stands = worker in getattr(survey, index)
        if stands != expected:
            yield violation(
                1, worker, f"is {status or 'not registered'}, but {'stands' if stands else 'is not'} in `{index}`"
            )
    held = survey.held[worker]
    if not status and (held.agents or held.tasks or held.runs or held.cancels or held.waits):
        yield violation(1, worker, "is not registered, but its sets exist")


def _shown(score: float | None) -> str:
    return "nothing" if score is None else f"{score:g}"


def check_agents(survey: Survey) -> Iterator[Violation]:
    """2: each live agent waits, or is on one worker, and its record says the same."""
    places: dict[str, list[str]] = {name: [""] for name in survey.pending}
    for worker, held in survey.held.items():
        for name in held.agents:
            places.setdefault(name, []).append(worker)
    for name in places.keys() - survey.agents.keys():
        where = ", ".join(place or "those who wait" for place in places[name])
        yield violation(2, f"{survey.pool}/{name}", f"has no record, but is named by {where}")
    for name, agent in survey.agents.items():
        if fault := _agent_fault(survey, agent, places.get(name, [])):
            yield violation(2, f"{survey.pool}/{name}", fault)


def _agent_fault(survey: Survey, agent: dict[str, str], places: list[str]) -> str:
    status, owner = agent.get("status", ""), agent.get("process_id", "")
    if status not in set(AgentStatus) - {AgentStatus.TERMINATED, AgentStatus.FAILED}:
        return f"is alive, but its status is {status!r}"
    if len(places) != 1:
        named = ", ".join(place or "waiting" for place in places) or "nowhere"
        return f"must be in one place, but is in {len(places)}: {named}"
    if owner != places[0]:
        return f"its process_id is {owner!r}, but it is {f'on {places[0]}' if places[0] else 'waiting'}"
    if (status == AgentStatus.PENDING) != (places[0] == ""):
        return f"its status is {status}, but it is {f'on {places[0]}' if places[0] else 'waiting'}"
    if owner and owner not in survey.records:
        return f"is on {owner}, which is not registered"
    return ""


def check_beats(survey: Survey) -> Iterator[Violation]:
    """6: each worker beats, or is given up and emptied within the promised time."""
    promised = 2 * survey.heartbeat_timeout_ms + SLACK_MS
    for worker, beat in survey.workers.items():
        status, silent = survey.records.get(worker, {}).get("status", ""), int(survey.now_ms - beat)
        if status in (W.READY, W.DRAINING) and silent > promised:
            yield violation(6, worker, f"is {status} and silent for {silent} ms, but was not given up")
    for worker, fenced in survey.lost.items():
        if survey.now_ms - fenced > promised:
            yield violation(6, worker, f"was fenced {int(survey.now_ms - fenced)} ms ago, but is not emptied")


def check_fences(survey: Survey) -> Iterator[Violation]:
    """7: no lock is ahead of the fence that its pool remembers; a placed agent has an incarnation."""
    for lock, token in (("leader", survey.leader_lock), ("placement", survey.placement_lock)):
        known = int(survey.info.get("fence" if lock == "leader" else "placement_fence") or 0)
        fence = token.partition(" ")[0]
        if token and (not fence.isdigit() or int(fence) > known):
            yield violation(7, survey.pool, f"the {lock} lock has fence {fence!r}, but the last given was {known}")
    for name, agent in survey.agents.items():
        incarnation = agent.get("incarnation", "")
        least = 0 if agent.get("status") == AgentStatus.PENDING else 1
        if not incarnation.isdigit() or int(incarnation) < least:
            yield violation(7, f"{survey.pool}/{name}", f"its incarnation is {incarnation!r}, but was placed before")


def check_growth(before: Survey, after: Survey) -> Iterator[Violation]:
    """7: what only grows did not shrink between two surveys."""
    for field in ("fence", "placement_fence"):
        was, now = (int(survey.info.get(field) or 0) for survey in (before, after))
        if now < was:
            yield violation(7, after.pool, f"its {field} went back from {was} to {now}")
    for name, agent in after.agents.items():
        earlier = before.agents.get(name, {})
        same = earlier.get("operation") == agent.get("operation")
        if same and _number(agent, "incarnation") < _number(earlier, "incarnation"):
            yield violation(7, f"{after.pool}/{name}", "its incarnation went back")
    for worker, record in after.records.items():
        if _number(record, "version") < _number(before.records.get(worker, {}), "version"):
            yield violation(7, worker, "its version went back")


def _number(record: dict[str, str], field: str) -> int:
    text = record.get(field, "")
    return int(text) if text.isdigit() else 0


def check_bounds(survey: Survey) -> Iterator[Violation]:
    """9: no queue is longer than its bound. What comes back to waiting is not counted, for it is not refused: agents
    that were placed before, tasks that were tried or delayed, and as many others as workers may have given back.
    """
    agents = [name for name in survey.pending if survey.agents.get(name, {}).get("incarnation", "0") == "0"]
    yield from _over(survey, "agents that wait", len(agents), "max_pending", _number(survey.info, "max_pending"))
    max_queued = _number(survey.info, "max_queued")
    for name, ids in survey.mailboxes.items():
        yield from _over(survey, f"mailbox of {name}", _new_tasks(survey, ids) - 1, "max_queued", max_queued)
    given_back = sum(_number(record, "capacity") + AHEAD for record in survey.records.values())
    by_tenant: dict[str, int] = {}
    for queue, ids in survey.queues.items():
        tenant = queue.rpartition(":")[2]
        by_tenant[tenant] = by_tenant.get(tenant, 0) + _new_tasks(survey, ids)
    for tenant, count in by_tenant.items():
        yield from _over(survey, f"tasks of {tenant}", count - given_back, "its limit", _queue_limit(survey, tenant))
    total, bound = sum(by_tenant.values()) - given_back, _number(survey.info, "max_queued_pool")
    yield from _over(survey, "tasks of all tenants", total, "max_queued_pool", bound)


def _over(survey: Survey, queue: str, size: int, setting: str, bound: int) -> Iterator[Violation]:
    if bound and size > bound:
        yield violation(9, f"{survey.pool}: {queue}", f"at least {size} wait, but {setting} is {bound}")


def _new_tasks(survey: Survey, ids: Collection[str]) -> int:
    """Return how many of these tasks a bound counts, as far as is known."""
    headers = [row.header for id in ids if (row := survey.tasks.get(id)) and id not in survey.attempts]
    return sum(header is not None and not any(map(header.option, ("parent", "delay", "replays"))) for header in headers)


def _queue_limit(survey: Survey, tenant: str) -> int:
    """Return how many tasks a tenant may have in the pool's queues: as set live, as configured, by default."""
    defaults = survey.info.get("tenant_limits", "") if tenant != "default" else ""
    words = {"queued": float(survey.info.get("max_queued") or 0)}
    for text in (defaults, survey.limits.get(f"={tenant}", ""), survey.limits.get(tenant, "")):
        words.update(decode_limits(text))
    return int(words["queued"])
