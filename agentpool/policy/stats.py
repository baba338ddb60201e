"""A pool in numbers, from its records."""

from typing import Any

from agentpool.protocol.records import PoolInfo, PoolStats, PoolView, WorkerRecord
from agentpool.protocol.states import WorkerStatus

__all__ = ["sum_up"]


def sum_up(info: PoolInfo, view: PoolView, workers: list[WorkerRecord], timeout_ms: int) -> PoolStats:
    """Return a pool's numbers from its records, as the contract defines them."""
    takers = [worker for worker in workers if worker.status is WorkerStatus.READY]
    total = sum(worker.capacity for worker in takers)
    used = sum(worker.capacity - worker.available for worker in takers)
    registered = [w for w in workers if w.status in (WorkerStatus.READY, WorkerStatus.DRAINING)]
    fresh = [w for w in registered if view.now_ms - max(w.last_beat, w.started_at) < timeout_ms]
    values: dict[str, Any] = {
        "process_count": len(registered),
        "active_worker_processes": len(fresh),
        "total_capacity": total,
        "used_capacity": used,
        "available_capacity": total - used,
        "agent_count": sum(worker.agent_count for worker in workers) + view.pending,
        "pending_agents": view.pending,
        "queued_tasks": view.waiting_tasks,
        "running_tasks": view.running_tasks,
        "delayed_tasks": view.delayed,
        "dead_tasks": view.dead,
        "utilization": round(used / total, 4) if total else 0.0,
        "starting_workers": view.starting,
        "draining_workers": view.draining,
    }
    return PoolStats(
        pool_name=info.pool_name,
        role_type=info.role_type,
        min_workers=info.min_workers,
        max_workers=info.max_workers,
        desired_workers=info.desired,
        leader=info.leader,
        restarts=info.restarts,
        **values,
    )
