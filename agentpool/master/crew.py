"""The workers of one pool that are this master's: forked or adopted, alive or just dead.

What is alive is in `processes`, how the dead ended in `dead` until the reaper has given back what they held.
"""

from collections.abc import Callable, Iterable

import structlog

from agentpool.clock import monotonic
from agentpool.master.host import Host, open_process
from agentpool.master.worker_process import WorkerProcess
from agentpool.protocol.deaths import Death, Vanished
from agentpool.protocol.events import EventName
from agentpool.protocol.records import WorkerRecord
from agentpool.protocol.states import WorkerStatus

__all__ = ["Crew"]

log = structlog.get_logger("crew")


class Crew:
    """The processes of one pool on this host. `on_death` is called when one ended."""

    def __init__(self, pool: str, on_death: Callable[[], None]) -> None:
        self.pool = pool
        self.processes: dict[str, WorkerProcess] = {}
        self.dead: dict[str, Death] = {}
        self.registered: set[str] = set()
        """Workers that were seen to have registered: a death before that is a failed boot."""
        self._on_death = on_death

    def add(self, process: WorkerProcess) -> None:
        """Watch a process; one that ended in the meantime is buried at once."""
        if process.ended.is_set():
            self.note_end(process)
        else:
            self.processes[process.worker_id] = process

    def adopt_all(self, records: Iterable[WorkerRecord], master: str, host: Host) -> None:
        """Take over those of `master` that are not held yet. An order without a process is the starter's: it may have
        one that is not written down.
        """
        for record in records:
            is_held = record.process_id in self.processes or record.process_id in self.dead
            is_order = not record.pid and record.status is WorkerStatus.ORDERED
            if record.master == master and not (is_held or is_order):
                self.adopt(record, host)

    def adopt(self, record: WorkerRecord, host: Host) -> bool:
        """Take over a worker of an earlier master; one without a process counts as dead."""
        pidfd = open_process(record.pid, record.start_time) if record.pid and host.is_local(record) else None
        if pidfd is None:
            self.dead[record.process_id] = Vanished("found dead by its restarted master")
            return False
        self.registered.add(record.process_id)
        self.add(WorkerProcess(record.process_id, record.pid, pidfd, self.note_end))
        log.info("worker.adopted", pool=self.pool, process_id=record.process_id, pid=record.pid)
        return True

    def note_end(self, process: WorkerProcess) -> None:
        """Remember how a process died, for the reaper."""
        worker_id = process.worker_id
        self.processes.pop(worker_id, None)
        self.dead[worker_id] = process.death
        log.info(
            "worker.exited",
            pool=self.pool,
            process_id=worker_id,
            pid=process.pid,
            how=str(process.death),
            seconds=round(monotonic() - process.started_at, 3),
        )
        self._on_death()

    def note_status(self, worker_id: str, status: int) -> None:
        """Take an exit status from the zygote, which may come before or after the pidfd tells."""
        process = self.processes.get(worker_id)
        if process:
            process.set_status(status)

    def lose(self, worker_id: str, why: str) -> None:
        """Count an order that could not be carried out as a death."""
        self.dead[worker_id] = Vanished(why)
        log.warning(EventName.WORKER_BOOT_FAILED, pool=self.pool, process_id=worker_id, error=why)
        self._on_death()

    def forget(self) -> None:
        """Leave all processes alone, for the next master."""
        for process in self.processes.values():
            process.forget()
        self.processes.clear()
