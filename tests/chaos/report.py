"""The report of a run, as Markdown."""

import statistics
from collections import Counter, defaultdict

import msgspec
from chaos.aftermath import percentile
from chaos.checks import Violation, names
from chaos.faults import Done
from chaos.history import Operation, Outcome

__all__ = ["Summary", "render"]

VIOLATIONS_SHOWN = 50


class Summary(msgspec.Struct, kw_only=True):
    """What a report tells. Times are in s."""

    date: str
    seed: int
    minutes: float
    release: str
    server: str
    hosts: int
    faults: list[Done]
    operations: list[Operation]
    outcomes: list[Outcome]
    runs: int
    reruns: int
    dropped: int
    examinations: int
    suspicions: int
    times: dict[str, list[float]]
    """What was measured, by what it is called."""
    losses: Counter[str]
    """Workers that were given up, by the fault that explains it."""
    frozen: list[int]
    """For each long stop of the server how many workers were given up from then until well after."""
    violations: list[Violation]


def render(summary: Summary) -> str:
    """Return the report."""
    return "\n".join(
        [
            f"### {summary.date}: {summary.minutes:g} minutes, seed {summary.seed}",
            "",
            *_headline(summary),
            "",
            *_faults(summary),
            "",
            *_times(summary),
            "",
            *_operations(summary),
            "",
            *_checks(summary),
            "",
        ]
    )


def _headline(summary: Summary) -> list[str]:
    carried = [done for done in summary.faults if not done.skipped]
    return [
        f"agentpool {summary.release} on {summary.server}, {summary.hosts} masters as hosts of their own. "
        f"{len(carried)} faults, {len(summary.operations)} operations, {len(summary.outcomes)} tasks ended, "
        f"**{len(summary.violations)} violations**.",
    ]


def _faults(summary: Summary) -> list[str]:
    carried: Counter[str] = Counter(done.fault.kind for done in summary.faults if not done.skipped)
    skipped: Counter[str] = Counter(done.fault.kind for done in summary.faults if done.skipped)
    gaps: dict[str, list[float]] = defaultdict(list)
    for done in summary.faults:
        if "gap" in done.recovered:
            gaps[done.fault.kind].append(done.recovered["gap"])
    lines = [
        "| fault | times | not possible | alone | longest time in which no task was answered: median | most |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind in sorted(carried | skipped):
        known = gaps.get(kind, [])
        shown = f"{statistics.median(known):.2f} s | {max(known):.2f} s" if known else "| "
        lines.append(f"| {kind} | {carried[kind]} | {skipped[kind]} | {len(known)} | {shown} |")
    lost = ", ".join(f"{count} ({kind})" for kind, count in sorted(summary.losses.items()))
    lines += ["", f"Replies dropped: {summary.dropped}. Workers given up: {lost or 'none'}."]
    if summary.frozen:
        lines.append(f"While the server was stopped for 30 s, and in the 10 s after: {sum(summary.frozen)}.")
    return lines


def _times(summary: Summary) -> list[str]:
    lines = ["| time until | measured | median | 95 % | most |", "|---|--:|--:|--:|--:|"]
    for name, values in summary.times.items():
        if values:
            shown = [percentile(values, share) for share in (0.5, 0.95, 1.0)]
            lines.append(f"| {name} | {len(values)} | " + " | ".join(_seconds(each) for each in shown) + " |")
    return lines


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _operations(summary: Summary) -> list[str]:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for operation in summary.operations:
        table[operation.kind][operation.answer] += 1
    answers = ("acknowledged", "refused", "unknown", "broke", "pending")
    lines = [f"| operation | {' | '.join(answers)} |", "|---|" + "--:|" * len(answers)]
    for kind in sorted(table):
        lines.append(f"| {kind} | " + " | ".join(str(table[kind][answer]) for answer in answers) + " |")
    statuses = Counter(outcome.status for outcome in summary.outcomes)
    ended = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    return [*lines, "", f"Tasks: {ended}. `run()` was called {summary.runs} times, {summary.reruns} of them again."]


def _checks(summary: Summary) -> list[str]:
    lines = ["| check | violations |", "|---|--:|"]
    lines += [f"| {name} | {count} |" for name, count in names(summary.violations).items()]
    lines += [
        "",
        f"The doctor examined {summary.examinations} times; {summary.suspicions} suspicions in all.",
    ]
    for violation in summary.violations[:VIOLATIONS_SHOWN]:
        lines.append(f"* {violation.check}: {violation.subject}: {violation.detail}")
    return lines
