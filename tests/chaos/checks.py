"""What must hold of a whole run: pure functions from what was recorded to violations.

What Redis holds at any one moment is the doctor's to check; here it is about what happened one after the other.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import msgspec
from chaos.effects import Effects, Life
from chaos.history import Fence, Loss, Operation, Outcome

__all__ = ["CHECKS", "Record", "Violation", "check_all"]

TOGETHER_S = 0.15
"""What one agent may seem to run on two workers: a process that was frozen and wakes up takes a moment to find out."""
CLOCK_S = 0.02
"""Between the clocks of the server and of this host's processes, and for a timer that counts whole ms."""
BLAMED_DEATHS = 3


class Violation(msgspec.Struct, frozen=True):
    """Something that must not be: the name of its check, what it is about, what was seen."""

    check: str
    subject: str
    detail: str


class Record(msgspec.Struct, kw_only=True):
    """All that is known when a run is over. Times are in s by CLOCK_BOOTTIME."""

    operations: list[Operation] = []
    effects: Effects = msgspec.field(default_factory=Effects)
    outcomes: dict[str, Outcome] = {}
    changed: dict[str, str] = {}
    """Tasks whose outcome was read twice and was another the second time."""
    unfinished: frozenset[str] = frozenset()
    """Tasks without an outcome in the end."""
    alive: frozenset[str] = frozenset()
    """Ids of the agents that live in the end."""
    ended: dict[str, str] = {}
    """Of agents that ended: how, and why."""
    losses: list[Loss] = []
    fences: list[Fence] = []
    limits: dict[str, int] = {}
    """Tasks that a tenant may run at once."""


Check = Callable[[Record], Iterator[tuple[str, str]]]


def check_all(record: Record) -> list[Violation]:
    """Return everything that is wrong, by check."""
    return [Violation(name, *found) for name, check in CHECKS.items() for found in check(record)]


# -- tasks ------------------------------------------------------------------------------------------------------


def _outcomes(record: Record) -> Iterator[tuple[str, str]]:
    for operation in record.operations:
        for task in operation.tasks:
            if task not in record.outcomes:
                where = "is unfinished" if task in record.unfinished else "is gone"
                yield task, f"was accepted ({operation.kind} {operation.number}) and {where}"
    for task in sorted(record.unfinished - {task for each in record.operations for task in each.tasks}):
        yield task, "is unfinished"
    for task, what in record.changed.items():
        yield task, f"its outcome changed: {what}"
    for task in record.effects.by_task:
        if task and task not in record.outcomes and task not in record.unfinished:
            yield task, "ran, and has no outcome"


def _told(record: Record) -> Iterator[tuple[str, str]]:
    for operation in record.operations:
        if operation.unheard:
            yield _name(operation), f"its caller waited for its outcome in vain: {operation.unheard}"
        if not operation.told:
            continue
        if operation.tasks:
            known = record.outcomes.get(operation.tasks[0])
            if known and operation.told not in (known.run, known.status):
                yield operation.tasks[0], f"its caller was told {operation.told}, but it is {known.run or known.status}"
        elif operation.told not in {known.run for known in _outcomes_of(record, operation)}:
            yield _name(operation), f"its caller was told {operation.told}, which is no outcome"


def _outcomes_of(record: Record, operation: Operation) -> list[Outcome]:
    tasks = {run.first.task for run in record.effects.by_op.get(operation.number, ())}
    return [record.outcomes[task] for task in tasks if task in record.outcomes]


def _proofs(record: Record) -> Iterator[tuple[str, str]]:
    for task, outcome in record.outcomes.items():
        if outcome.status != "succeeded":
            continue
        run = record.effects.runs.get(outcome.run)
        if run is None or run.first.task != task:
            yield task, f"succeeded by run {outcome.run or '?'}, which is not one of its own"
        elif run.how != "returned":
            yield task, f"succeeded by run {outcome.run}, which {run.how or 'never ended'}"
        elif run.first.worker != outcome.worker:
            yield task, f"succeeded on {run.first.worker}, but {outcome.worker} is recorded"


def _expected(record: Record) -> Iterator[tuple[str, str]]:
    cancelled = {task for each in record.operations if each.kind == "cancel" for task in each.tasks}
    terminated = {each.agent for each in record.operations if each.kind == "terminate"}
    for operation in record.operations:
        if operation.kind in ("cancel", "spawn", "terminate") or operation.answer != "acknowledged":
            continue
        for task in operation.tasks:
            outcome = record.outcomes.get(task)
            if outcome is None or outcome.status in operation.expects:
                continue
            if outcome.status == "cancelled" and task in cancelled:
                continue
            if outcome.status == "agent_terminated" and (
                operation.agent in terminated or operation.agent in record.ended
            ):
                continue
            if outcome.status == "worker_lost" and _deaths(record, task) >= BLAMED_DEATHS:
                continue
            yield (
                task,
                f"{operation.kind} {operation.number} came to {outcome.status} ({outcome.error}), "
                f"expected {' or '.join(operation.expects)}",
            )


def _raised(record: Record) -> Iterator[tuple[str, str]]:
    """Errors of `run` calls: whose own time was long, and which nobody cancelled."""
    terminated = {each.agent for each in record.operations if each.kind == "terminate"}
    for operation in record.operations:
        if operation.kind != "run" or operation.answer != "acknowledged" or not operation.error:
            continue
        error = operation.error.partition(":")[0]
        deaths = max(
            (_deaths(record, run.first.task) for run in record.effects.by_op.get(operation.number, ())), default=0
        )
        excused = (
            error == "TaskTimedOut"
            or (error == "AgentTerminated" and operation.agent in terminated)
            or (error == "WorkerLost" and deaths >= BLAMED_DEATHS)
        )
        if not excused:
            yield _name(operation), f"raised {operation.error}"


def _deaths(record: Record, task: str) -> int:
    return sum(run.ended is None for run in record.effects.by_task.get(task, ()))


def _once(record: Record) -> Iterator[tuple[str, str]]:
    keys: dict[str, set[str]] = defaultdict(set)
    for operation in record.operations:
        if operation.kind not in ("submit", "submit_many", "run"):
            continue
        ran = {run.first.task for run in record.effects.by_op.get(operation.number, ())}
        tasks = ran | set(operation.tasks)
        if operation.key:
            keys[operation.key] |= set(operation.tasks)
        elif len(tasks) > operation.count:
            yield _name(operation), f"became {len(tasks)} tasks: {', '.join(sorted(tasks))}"
        if operation.answer == "refused" and ran:
            yield _name(operation), f"was refused ({operation.error}), but ran as {', '.join(sorted(ran))}"
    for key, tasks in keys.items():
        if len(tasks) > 1:
            yield f"key {key}", f"means {len(tasks)} tasks: {', '.join(sorted(tasks))}"


def _delays(record: Record) -> Iterator[tuple[str, str]]:
    for operation in record.operations:
        for run in record.effects.by_op.get(operation.number, ()) if operation.delay else ():
            early = operation.invoked + operation.delay - run.began
            if early > CLOCK_S:
                yield run.first.task, f"began {early:.3f} s before its time"


# -- agents -----------------------------------------------------------------------------------------------------


def _agents(record: Record) -> Iterator[tuple[str, str]]:
    last: dict[str, Operation] = {}
    for operation in sorted(record.operations, key=lambda each: each.invoked):
        if operation.kind in ("spawn", "terminate"):
            last[operation.agent] = operation
    for agent, operation in last.items():
        lives, how = agent in record.alive, record.ended.get(agent, "")
        match operation.kind, operation.answer:
            case "spawn", "acknowledged" if not lives:
                yield agent, f"was spawned ({operation.number}) and is gone: {how or 'nobody knows why'}"
            case "spawn", "refused" if lives:
                yield agent, f"its spawn was refused ({operation.error}), but it lives"
            case "terminate", "acknowledged" if lives:
                yield agent, f"was terminated ({operation.number}), but it lives"


def _exclusive(record: Record) -> Iterator[tuple[str, str]]:
    """No agent that must not run twice, and no task of such an agent, runs in two processes at once."""
    groups: dict[str, list[Life]] = defaultdict(list)
    for life in record.effects.lives.values():
        if life.first.agent_type == "Sole":
            groups[life.first.agent].append(life)
    for task, runs in record.effects.by_task.items():
        groups[task] += [run for run in runs if run.first.agent_type == "Sole"]
    for name, lives in groups.items():
        lives.sort(key=lambda life: life.began)
        for place, life in enumerate(lives):
            for other in lives[place + 1 :]:
                seconds = _together(life, other)
                if seconds > TOGETHER_S and life.first.pid != other.first.pid:
                    yield (
                        name,
                        f"ran {seconds:.2f} s in two processes at once, from {other.began:.2f}: on {life.first.worker} "
                        f"(fence {life.first.fence}) and {other.first.worker} (fence {other.first.fence})",
                    )


def _together(life: Life, other: Life) -> float:
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in life.spans for b in other.spans)


def _fences(record: Record) -> Iterator[tuple[str, str]]:
    last: dict[str, Fence] = {}
    for fence in sorted(record.fences, key=lambda fence: fence.at):
        before = last.get(fence.of)
        if before and fence.number < before.number:
            yield fence.of, f"went back from {before.number} to {fence.number} at {fence.at:.2f}"
        last[fence.of] = fence
    holders: dict[tuple[str, int], set[str]] = defaultdict(set)
    for life in record.effects.lives.values():
        holders[life.first.agent, life.first.fence].add(life.first.worker)
    for (agent, number), workers in holders.items():
        if len(workers) > 1:
            yield agent, f"fence {number} was given to {len(workers)} workers: {', '.join(sorted(workers))}"


def _old_effects(record: Record) -> Iterator[tuple[str, str]]:
    """What is recorded of a pinned agent's task comes from its newest holder: nobody gets it after an outcome."""
    for task, outcome in record.outcomes.items():
        run = record.effects.runs.get(outcome.run)
        if run is None or not run.first.agent:
            continue
        newest = max(each.first.fence for each in record.effects.by_task.get(task, [run]))
        if run.first.fence < newest:
            yield task, f"the effect of fence {run.first.fence} was accepted, though fence {newest} had it"


# -- limits and losses ------------------------------------------------------------------------------------------


def _limits(record: Record) -> Iterator[tuple[str, str]]:
    """A tenant's tasks at once, without those of workers that were given up, or of agents that were being ended."""
    lost = {loss.worker: loss.at for loss in record.losses}
    ending: dict[str, list[float]] = defaultdict(list)
    for operation in record.operations:
        if operation.kind == "terminate":
            ending[operation.agent].append(operation.invoked)
    spans: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for name, run in record.effects.runs.items():
        first = run.first
        if first.tenant not in record.limits:
            continue
        # A lease ends when its worker is given up, whether its run goes on or was killed long before.
        until = run.last if run.ended is not None else lost.get(first.worker, run.last)
        over = min([until, lost.get(first.worker, until), *(at for at in ending[first.agent] if at >= run.began)])
        if over > run.began:
            spans[first.tenant] += [(run.began, 1, name), (over, -1, name)]
    for tenant, steps in spans.items():
        running: set[str] = set()
        for at, step, name in sorted(steps):
            (running.add if step > 0 else running.discard)(name)
            if step > 0 and len(running) > record.limits[tenant]:
                yield tenant, f"ran {len(running)} tasks at once at {at:.3f}, limit {record.limits[tenant]}: {running}"
                break


def _losses(record: Record) -> Iterator[tuple[str, str]]:
    for loss in record.losses:
        if not loss.excused:
            yield loss.worker, f"was given up at {loss.at:.2f} without a fault that explains it: {loss.reason}"


def _errors(record: Record) -> Iterator[tuple[str, str]]:
    for operation in record.operations:
        if operation.answer == "broke":
            yield _name(operation), f"ended with an error that is none of ours: {operation.error}"
        elif operation.answer == "pending":
            yield _name(operation), "was never answered"


def _name(operation: Operation) -> str:
    return f"{operation.kind} {operation.number}"


CHECKS: dict[str, Check] = {
    "each accepted task has one outcome": _outcomes,
    "callers were told what is recorded": _told,
    "a recorded success is of a run that returned": _proofs,
    "tasks ended as they should": _expected,
    "calls that waited got a result": _raised,
    "one task for each request, none for a refusal": _once,
    "nothing began before its time": _delays,
    "spawned agents live, or ended with a reason": _agents,
    "what must not run twice ran once at a time": _exclusive,
    "fences only grew": _fences,
    "no effect of an old fence was accepted": _old_effects,
    "limits were kept": _limits,
    "nobody was given up without a cause": _losses,
    "every call was answered, by ours": _errors,
}

OF_THE_RUN = (
    "the doctor finds nothing that stands",
    "the doctor finds nothing in the end",
    "masters stop cleanly",
    "nothing is left behind",
)
"""What a run itself looks at."""


def names(violations: Iterable[Violation]) -> dict[str, int]:
    """Return how many violations each check found, all checks included."""
    counts = dict.fromkeys((*CHECKS, *OF_THE_RUN), 0)
    for violation in violations:
        counts[violation.check] = counts.get(violation.check, 0) + 1
    return counts
