"""The product's own loops of a master over one pool, turned by hand, with processes that do nothing for workers."""

import contextlib
import os
import subprocess
from pathlib import Path

from agentpool.clock import monotonic
from agentpool.config import PoolSettings, Settings
from agentpool.errors import AgentPoolError
from agentpool.master.auditor import Auditor
from agentpool.master.autoscaler import Autoscaler
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.host import Host, start_time
from agentpool.master.leadership import Leadership
from agentpool.master.reaper import Reaper
from agentpool.master.reporter import Reporter
from agentpool.master.scope import PoolScope
from agentpool.master.starter import Starter
from agentpool.master.timekeeper import Timekeeper
from agentpool.master.worker_process import WorkerProcess
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.zygote import Fork
from agentpool.store import Store
from agentpool.version import __version__

__all__ = ["OneMaster", "Processes"]

POOL = "p"


class Processes:
    """Real processes that stand for workers. They outlive their masters; what they would say they say by hand."""

    def __init__(self, store: Store, capacity: int) -> None:
        self.store, self.capacity = store, capacity
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def fork(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)

    async def register(self, order: Fork, host: Host, types_hash: str) -> None:
        """As the worker does, from a process of its own: its master's death does not keep it from that."""
        process = self.running[order.worker_id]
        fields = {
            "pid": process.pid, "start_time": start_time(process.pid), "host": host.name, "host_id": host.host_id,
            "boot_id": host.boot_id, "pid_ns": host.pid_ns, "types_hash": types_hash, "release": __version__,
            "master": order.master,
        }  # fmt: skip
        words = [word for pair in fields.items() for word in pair]
        await self.store.connection.call("register_worker", POOL, order.worker_id, order.secret, self.capacity, *words)

    async def leave(self, worker: str) -> None:
        """Drain as a worker does that has been told to."""
        view = await self.store.workers.view(POOL, worker)
        for agent in view.agents if view else ():
            name = agent.agent_id.partition("/")[2]
            await self.store.agents.release(POOL, worker, name, agent.incarnation, "")
        await self.store.workers.retire(POOL, worker, reason="test")
        self.kill(worker)

    def kill(self, worker: str) -> None:
        process = self.running.pop(worker)
        process.kill()
        process.wait()

    def close(self) -> None:
        for worker in list(self.running):
            self.kill(worker)


class OneMaster:
    """One process of a master; another with the same name is its restart."""

    def __init__(
        self, store: Store, processes: Processes, folder: Path, name: str = "h1", types: str = "1", **settings: object
    ) -> None:
        self.processes, self.capacity = processes, processes.capacity
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        host = Host(name=name, host_id=name * 8, boot_id=boot_id, pid_ns=os.readlink("/proc/self/ns/pid"))
        values = {"min_workers": 0, "max_workers": 3, "agents_per_worker": self.capacity, **settings}
        pools = {POOL: PoolSettings(**values)}  # type: ignore[arg-type]
        self.scope = PoolScope(store, POOL, host, Settings(data_dir=str(folder), pools=pools), "install")
        self.scope.types_hash, self.scope.release = types, __version__
        self.boots = Boots(failures_max=5, backoff=0.001, backoff_max=0.001)
        self.crew = Crew(POOL, lambda: None)
        self.leadership = Leadership(self.scope, self._on_election, self._on_election)
        self.reporter = Reporter(self.scope, self.boots, lambda: len(self.crew.processes))
        self.starter = Starter(self.scope, self.crew, self.boots, self._fork)
        self.autoscaler = Autoscaler(self.scope, self.boots, self.starter.carry_out)
        self.reaper = Reaper(self.scope, self.crew, self.boots)
        self.timekeeper, self.auditor = Timekeeper(self.scope), Auditor(self.scope)

    async def open(self) -> None:
        """As `PoolKeeper.start` does."""
        await self.reporter.join()
        self.crew.adopt_all(await self.scope.store.workers.all(POOL), self.scope.master, self.scope.host)
        await self.leadership.lead_once()

    async def turn(self) -> None:
        """One turn of each loop."""
        self.autoscaler._shrunk_at = self.reaper._scanned_at = monotonic() - 10
        for verb in (
            self.leadership.lead_once, self.reporter.report_once, self.reaper.reap_once, self.autoscaler.scale_once,
            self.starter.start_once, self.timekeeper.fire_once, self.auditor.drain_once,
        ):  # fmt: skip
            await verb()

    async def _on_election(self, token: str) -> None:
        await self.scope.store.pools.apply(POOL, token, [TypeInfo(name="R", module="tests")], self.scope.applied())

    async def _fork(self, order: Fork) -> tuple[WorkerProcess, int]:
        process = self.processes.fork()
        self.processes.running[order.worker_id] = process
        await self.processes.register(order, self.scope.host, self.scope.types_hash)
        watched = WorkerProcess(order.worker_id, process.pid, os.pidfd_open(process.pid), self.crew.note_end)
        return watched, start_time(process.pid)

    def close(self) -> None:
        """It is gone; its workers are not."""
        with contextlib.suppress(AgentPoolError):
            self.crew.forget()
