"""One local pool: a host of agents, and what Redis would hold for it."""

import asyncio
import contextvars
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from agentpool.agent import AgentType
from agentpool.client.local.events import EventLog
from agentpool.client.local.registry import LocalRegistry, Surroundings
from agentpool.client.local.tasks import LocalTasks
from agentpool.clock import wall_ms
from agentpool.config import PoolSettings
from agentpool.hosting import Host, HostSettings, Place
from agentpool.policy.stats import sum_up
from agentpool.pool.memory import process_memory_mb
from agentpool.protocol.codec import new_id
from agentpool.protocol.events import EventName
from agentpool.protocol.records import PoolInfo, PoolStats, PoolView, TypeInfo, WorkerRecord
from agentpool.protocol.states import WorkerStatus
from agentpool.version import SCHEMA_VERSION, __version__

__all__ = ["LocalPool"]

CLOSED = "the client of this local pool was closed"


class LocalPool:
    """Belongs to the loop in which it is made. Its capacity is what all its workers would have."""

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        types: Mapping[str, AgentType],
        labels: Collection[str],
        events: EventLog,
        run_by_type: Callable[..., Awaitable[Any]],
    ) -> None:
        self.name, self._settings, self._types = name, settings, types
        self.worker_id = new_id()
        self._capacity = settings.max_workers * settings.agents_per_worker
        self._started_at = wall_ms()
        self._note = partial(events.note, name)
        context = contextvars.copy_context()
        around = Surroundings(
            room=lambda: self.tasks.running.free(),
            check=lambda request, agents: self.tasks.admission.check_agent(request, agents),
            start=lambda desired: context.copy().run(self._host.agents.start, desired),
            stop=lambda agent_id: self._host.agents.stop(agent_id),
            waiting=lambda agent: self.tasks.mail(agent),
            freed=lambda: self.tasks.running.dispatch(),
            fail_tasks=lambda agent, detail: self.tasks.fail_tasks(agent, detail),
            note=self._note,
        )
        self.agents = LocalRegistry(name, self.worker_id, types, settings.max_pending, around)
        self._labels = sorted(labels)
        self.tasks = LocalTasks(name, self.worker_id, settings, types, labels, self.agents, context, self._note)
        host_settings = HostSettings.of(settings, name, self.worker_id, self._capacity)
        place = Place(host_settings, types, self.agents, run_by_type, emit=self.tasks.report)
        self._host = self.tasks.running.host = Host(
            place,
            on_idle=lambda agent, _: self.tasks.running.dispatch_agent(agent),
            on_change=self.tasks.running.dispatch,
            resync=lambda: self.agents.start_missing(lambda agent_id: self._host.agents.get(agent_id) is not None),
        )
        self._note(EventName.POOL_APPLIED)
        self._note(EventName.WORKER_READY, "", self.worker_id)

    async def close(self) -> None:
        """Let running tasks finish for `drain_timeout`, then stop every agent."""
        await self.tasks.close(self._settings.drain_timeout, CLOSED)
        for record in self.agents.all():
            self.agents.terminate(record.agent_id, CLOSED)
        await self._host.agents.gone()
        await self._host.close()

    def why_no_room(self) -> str:
        """Tell why an agent waits for room, and what to do."""
        return (
            f"All {self._capacity} slots of this local pool are taken: terminate agents, or raise max_workers or "
            "agents_per_worker."
        )

    def info(self) -> PoolInfo:
        """Return the settings, for one worker that is this process."""
        settings = self._settings
        return PoolInfo(
            pool_name=self.name,
            role_type=settings.role_type,
            min_workers=1,
            max_workers=1,
            agents_per_worker=self._capacity,
            placement=settings.placement,
            max_input_bytes=settings.max_input_bytes,
            max_queued=settings.max_queued,
            batch_max_wait_ms=round(1000 * settings.batch_max_wait),
            floor=1,
            desired=1,
            schema=SCHEMA_VERSION,
            release=__version__,
            status="active",
        )

    def types(self) -> list[TypeInfo]:
        """Return what the agent types declare."""
        return [self._types[name].info() for name in sorted(self._types)]

    async def workers(self) -> list[WorkerRecord]:
        """Return this process as the pool's one worker; its memory is read in a thread, as that may take long."""
        memory_mb = await asyncio.to_thread(process_memory_mb)
        return [self._worker(memory_bytes=round(1e6 * (memory_mb or 0.0)))]

    def _worker(self, memory_bytes: int = 0) -> WorkerRecord:
        used = self.agents.placed + self.tasks.running.by_type
        return WorkerRecord(
            process_id=self.worker_id,
            pool_name=self.name,
            status=WorkerStatus.READY,
            host=socket.gethostname(),
            pid=os.getpid(),
            capacity=self._capacity,
            agent_count=self.agents.placed,
            task_count=len(self.tasks.running),
            available=max(0, self._capacity - used),
            release=__version__,
            labels=" ".join(self._labels),
            started_at=self._started_at,
            last_beat=wall_ms(),
            memory_bytes=memory_bytes,
        )

    def stats(self) -> PoolStats:
        """Return the pool in numbers."""
        pending, worker = self.agents.pending, self._worker()
        view = PoolView(
            now_ms=wall_ms(),
            workers=1,
            starting=0,
            draining=0,
            ready=1,
            pending=pending,
            due=pending,
            waiting_tasks=self.tasks.queued,
            runnable_tasks=self.tasks.queued,
            running_tasks=len(self.tasks.running),
            free_slots=worker.available,
            lost=0,
            delayed=self.tasks.delayed,
            dead=len(self.tasks.letters),
        )
        return sum_up(self.info(), view, [worker], timeout_ms=round(1000 * self._settings.heartbeat_timeout))
