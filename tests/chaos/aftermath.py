"""What faults led to: pure, from what was seen over time.

How long it took until all was well again is measured only of a fault that had the stage for itself: what another one
cost cannot be told apart.
"""

import itertools
import math

import msgspec
from chaos.effects import Effects
from chaos.faults import Done
from chaos.history import Loss
from chaos.schedule import Kind, Timing

__all__ = ["Probe", "excuse", "is_alone", "led_again", "longest_gap", "measure", "percentile", "tasks_again"]

BEFORE_S = 2.0
AFTER_S = 1.5
"""For so long before and after it no other fault may have been at work."""


class Probe(msgspec.Struct, frozen=True):
    """A small task, when it was handed in and when its result came; in s by CLOCK_BOOTTIME."""

    asked: float
    answered: float


def is_alone(done: Done, others: list[Done]) -> bool:
    """Tell whether no other fault was at work around this one."""
    return not any(
        other is not done and other.began < done.healed + AFTER_S and other.healed > done.began - BEFORE_S
        for other in others
    )


def tasks_again(done: Done, effects: Effects) -> list[float]:
    """Return for each task that was at work on a killed worker after how many s it ran again, in order."""
    waits = []
    for runs in effects.by_task.values():
        for run in runs:
            if run.first.worker in done.workers and run.ended is None and run.began < done.began:
                later = [other.began for other in runs if other.began > done.began]
                if later:
                    waits.append(min(later) - done.began)
    return sorted(waits)


def led_again(done: Done, leaders: list[tuple[float, int]]) -> float | None:
    """Return after how many s a leader with another fence was seen; `leaders` are times and fences."""
    return next((at - done.began for at, fence in leaders if at > done.began and fence > done.leader_fence), None)


def longest_gap(done: Done, probes: list[Probe], after_s: float) -> float:
    """Return the longest time, from the fault to `after_s` beyond it, in which nothing was answered."""
    times = [done.began, *sorted(p.answered for p in probes if done.began <= p.answered <= done.ended + after_s)]
    return max((later - at for at, later in itertools.pairwise(times)), default=0.0)


def measure(dones: list[Done], effects: Effects, leaders: list[tuple[float, int]]) -> dict[str, list[float]]:
    """Return what was measured of faults that were alone, in s, by what it is called."""
    times: dict[str, list[float]] = {
        name: [] for name in (_TASK_AGAIN, _TASKS_AGAIN, *_LED_AGAIN.values(), _REGISTERED)
    }
    for done in dones:
        if done.skipped or not is_alone(done, dones):
            continue
        if done.fault.kind in (Kind.WORKER_KILL, Kind.WORKERS_KILL) and (waits := tasks_again(done, effects)):
            times[_TASK_AGAIN] += waits
            times[_TASKS_AGAIN].append(waits[-1])
        if done.fault.kind in _LED_AGAIN and (wait := led_again(done, leaders)) is not None:
            times[_LED_AGAIN[done.fault.kind]].append(wait)
        if "registered" in done.recovered:
            times[_REGISTERED].append(done.recovered["registered"])
    return times


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of the values is, by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


EARLY_FAULT_S = 12.0
"""A worker that was never ready may have been lost to any fault of this time before."""
CLOCKS_S = 0.05
"""Between this host's clocks, one of which the server reads."""
MARGIN_S = 3.0
"""Beyond the times that are promised, for a tick and a slow machine."""

_ENDS = frozenset({Kind.WORKER_KILL, Kind.WORKERS_KILL, Kind.WORKER_FREEZE, Kind.ZYGOTE_STOP})
"""What a worker does not survive; one that is stopped for a moment does."""
_CUTS = frozenset({Kind.PARTITION_LONG})

_TASK_AGAIN = "a task of a killed worker runs again"
_TASKS_AGAIN = "all tasks of a killed worker run again"
_LED_AGAIN = {
    Kind.LEADER_KILL: "a pool is led again after its leader's kill -9",
    Kind.LEADER_FREEZE: "the same after its leader was stopped",
    Kind.LEADER_RESTART: "the same after its leader handed over",
}
_REGISTERED = "everything is registered again after the server's return"


def excuse(loss: Loss, dones: list[Done], timing: Timing, *, was_ready: bool) -> str:
    """Return the fault that explains why a worker was given up, or ''.

    That the server or a master was away explains nothing.
    """
    for done in dones:
        ended = done.ended or loss.at
        if done.began > loss.at + CLOCKS_S:
            continue
        if loss.worker in done.workers and done.fault.kind in _ENDS:
            return done.fault.kind
        is_late = loss.at > ended + timing.heartbeat_timeout + MARGIN_S
        if done.fault.kind in _CUTS and (loss.host in done.hosts or not loss.host) and not is_late:
            return done.fault.kind
        if not was_ready and loss.at < ended + EARLY_FAULT_S:
            return done.fault.kind
    return ""
