"""Growth for what waits for hosts with labels: workers elsewhere would be of no use to it."""

from collections.abc import Mapping, Sequence

import msgspec

from agentpool.policy.actions import Action, SetDesired, StartWorkers
from agentpool.policy.reconcile import Limits, plan_growth
from agentpool.protocol.records import HostsView, PoolInfo, PoolView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

__all__ = ["plan_labelled_growth"]


def plan_labelled_growth(
    limits: Limits,
    info: PoolInfo,
    view: PoolView,
    demand: Mapping[str, int],
    workers: Sequence[WorkerRecord],
    hosts: HostsView,
) -> list[Action]:
    """Return starts on hosts with the labels of `demand` (joined by `+`) where the workers there have no room for it,
    and what is needed for everything else.
    """
    rest = max(0, view.due + view.runnable_tasks - sum(demand.values()))
    actions = plan_growth(limits, info, msgspec.structs.replace(view, due=rest, runnable_tasks=0))
    live = view.workers - view.draining + sum(a.count for a in actions if isinstance(a, StartWorkers))
    for labels, count in sorted(demand.items()):
        uncovered = count - _slots(labels.split("+"), limits.agents_per_worker, workers, hosts)
        more = min(-(-uncovered // limits.agents_per_worker), limits.max_workers - live)
        if more > 0 and not info.restarts:
            live += more
            actions += [SetDesired(max(live, info.desired)), StartWorkers(more, labels=tuple(labels.split("+")))]
    return actions


def _slots(labels: Sequence[str], per_worker: int, workers: Sequence[WorkerRecord], hosts: HostsView) -> int:
    """Return the slots on workers with these labels, those on their way included."""
    offered = {host.master: set(host.labels.split()) for host in hosts.hosts}
    slots = 0
    for worker in workers:
        if not set(labels) <= (set(worker.labels.split()) or offered.get(worker.master, set())):
            continue
        if worker.status in (WorkerStatus.ORDERED, WorkerStatus.STARTING):
            slots += per_worker
        elif worker.status is WorkerStatus.READY:
            slots += worker.available
    return slots
