"""Replacing outdated workers one by one: a new one is ready before an old one drains.

A worker is outdated when its own host's master would start it otherwise now: of another release, with other agent
types, or because an upgrade asked for new ones. So hosts may be upgraded one after another, and each keeps what it has
until its turn comes. The plan needs no memory: with one worker more than wanted an old one drains, else one is started.
"""

from collections.abc import Sequence

from agentpool.policy.actions import Action, DrainWorker, SetRenewing, StartWorkers
from agentpool.policy.spreading import is_full
from agentpool.protocol.records import HostRecord, HostsView, PoolInfo, PoolView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

__all__ = ["is_outdated", "plan_renewal"]


def is_outdated(worker: WorkerRecord, host: HostRecord | None) -> bool:
    """Tell whether the worker's host would start it otherwise now; nothing is known of one that is off the list."""
    if host is None:
        return False
    renewed = worker.ordered_at < host.renew_before
    return renewed or (worker.release, worker.types_hash) != (host.release, host.types_hash)


def plan_renewal(
    info: PoolInfo, view: PoolView, workers: Sequence[WorkerRecord], hosts: HostsView, alive_ms: int
) -> list[Action] | None:
    """Return the next step, no step while one is under way, or None when no worker is outdated."""
    by_master = {host.master: host for host in hosts.living(alive_ms)}
    ready = [worker for worker in workers if worker.status is WorkerStatus.READY]
    old = [worker for worker in ready if is_outdated(worker, by_master.get(worker.master))]
    if not old:
        return [SetRenewing(False)] if info.renewing else None
    if view.starting or view.draining:
        return []
    leaving = old[0]
    drain = DrainWorker(leaving.process_id, "a new one takes its place")
    begin: list[Action] = [] if info.renewing else [SetRenewing(True)]
    if len(ready) > max(info.desired, info.floor):
        return [*begin, drain]
    able = [host for host in by_master.values() if not host.closed]
    if not able:
        return []
    if all(is_full(host) for host in able):
        return [*begin, drain]
    return [*begin, StartWorkers(1, leaving.master)]
