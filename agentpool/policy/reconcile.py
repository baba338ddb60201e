"""How many workers a pool shall have: wanted, asked for and seen are three things.

*Wanted* is `desired`, kept in Redis; *asked for* are the workers that are ordered or starting; *seen* are the ready
ones. With only two of them a slow start would look like a missing worker and be started twice. `desired` grows with
the backlog at once, whatever cooldowns say, and shrinks by workers that were idle for long enough, or by `scale`.
"""

from collections.abc import Sequence

import msgspec

from agentpool.policy.actions import Action, DrainWorker, SetDesired, StartWorkers
from agentpool.policy.scaling import Load, Thresholds, threshold_step
from agentpool.protocol.records import PoolInfo, PoolView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

__all__ = ["Limits", "plan_growth", "plan_shrinking", "threshold", "workers_needed"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that a plan obeys. Times are in ms."""

    min_workers: int
    max_workers: int
    agents_per_worker: int
    worker_idle_ms: int
    thresholds: Thresholds


def workers_needed(view: PoolView, per_worker: int) -> int:
    """Return how many workers the backlog needs beyond free slots and those already ordered."""
    uncovered = view.due + view.runnable_tasks - view.free_slots - view.starting * per_worker
    return max(0, -(-uncovered // per_worker))


def plan_growth(limits: Limits, info: PoolInfo, view: PoolView, *, step: int = 0) -> list[Action]:
    """Return what to do so that nothing waits for a worker longer than it must; asks for nothing per worker.

    Draining workers no longer count: whoever replaces them is started while they finish.
    """
    live = view.workers - view.draining
    more = workers_needed(view, limits.agents_per_worker) or max(step, 0)
    floor = max(limits.min_workers, info.floor)
    wanted = min(max(info.desired, floor, live + more if more else 0), limits.max_workers)
    actions: list[Action] = []
    if wanted != info.desired:
        actions.append(SetDesired(wanted))
    if live < wanted and not info.restarts:
        actions.append(StartWorkers(wanted - live))
    return actions


def plan_shrinking(
    limits: Limits, info: PoolInfo, view: PoolView, workers: Sequence[WorkerRecord], *, step: int = 0
) -> list[Action]:
    """Let go of workers above what is wanted, of those idle for long, and of one that `step` asks.

    Nothing goes while the pool grows or while another worker drains.
    """
    ready = [worker for worker in workers if worker.status is WorkerStatus.READY]
    if view.draining or view.starting or not ready:
        return []
    if workers_needed(view, limits.agents_per_worker) or step > 0:
        return []
    idle = sorted((worker for worker in ready if worker.idle_since), key=lambda worker: worker.idle_since)
    excess = [DrainWorker(w.process_id, "above the wanted size") for w in idle[: max(0, len(ready) - info.desired)]]
    spare = max(0, len(ready) - len(excess) - max(limits.min_workers, info.floor))
    spare = min(spare, _not_missed(limits, ready))
    bored = [w for w in idle[len(excess) :] if view.now_ms - w.idle_since >= limits.worker_idle_ms][:spare]
    if excess or bored:
        return [*excess, *(DrainWorker(worker.process_id, "idle", only_idle=True) for worker in bored)]
    if step < 0:
        emptiest = min(ready, key=lambda worker: worker.capacity - worker.available)
        return [SetDesired(len(ready) - 1), DrainWorker(emptiest.process_id, "utilization is low")]
    return []


def _not_missed(limits: Limits, ready: Sequence[WorkerRecord]) -> int:
    """Return how many workers may leave so that utilization does not at once ask for them again."""
    if limits.thresholds.up >= 1.0:
        return len(ready)
    used, total = (
        sum(numbers) for numbers in zip(*((w.capacity - w.available, w.capacity) for w in ready), strict=True)
    )
    return int((total - used / limits.thresholds.up) / limits.agents_per_worker - 1e-9) if used else len(ready)


def threshold(limits: Limits, workers: Sequence[WorkerRecord], floor: int, since_scale_ms: int) -> int:
    """Return the step that utilization asks for: +1, -1 or 0."""
    ready = [worker for worker in workers if worker.status is WorkerStatus.READY]
    load = Load(
        workers=len(ready),
        total=sum(worker.capacity for worker in ready),
        used=sum(worker.capacity - worker.available for worker in ready),
        capacity=limits.agents_per_worker,
        since_last_ms=since_scale_ms,
    )
    return threshold_step(load, limits.thresholds, low=max(limits.min_workers, floor), high=limits.max_workers)
