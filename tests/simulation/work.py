"""Tasks: taken in the turns of their tenants, run, tried again, given back when a worker dies, set aside if they kill.

What decides is the product's: `FairQueue`, `next_retry`, `blame`, and the marks by which the dead tell what they ran.
The rest does in a few lines what the scripts of the task path do with it.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from simulation.world import Actor, Away, Call, Faults, Process, Sleep, World

from agentpool.policy.fair_queue import FairQueue
from agentpool.policy.retries import next_retry
from agentpool.protocol.marks import FILE_BYTES, SLOT_BYTES, blame, read_marks, write_mark
from agentpool.protocol.retrying import RetryPolicy

__all__ = ["ALONE_MAX", "Job", "Office", "WorkPolicy", "WorkServer"]

ALONE_MAX = 3
BATCH = 3
MARKS = 8


class Job(msgspec.Struct):
    """A task, and what becomes of it. `kind`: well, raises, kills (on the CPU), breaks (by a thread of its own)."""

    id: str
    tenant: str
    kind: str
    ms: float
    begun: int = 0
    attempts: int = 0
    crashes: int = 0
    alone: int = 0
    is_suspect: bool = False
    outcomes: list[str] = []


class WorkPolicy(msgspec.Struct, kw_only=True):
    """The decisions."""

    next_retry: Callable[..., float | None] = next_retry
    blame: Callable[..., Any] = blame
    queue: Callable[[], Any] = FairQueue


class WorkServer:
    """What the server knows of tasks by type. It stands in for the `Server` of a `World`."""

    def __init__(self, policy: WorkPolicy, weights: dict[str, float]) -> None:
        self.now, self.published, self.hints = 0, [], []
        self.fair, self.weights = policy.queue(), weights
        self.jobs: dict[str, Job] = {}
        self.queues: dict[str, list[str]] = {tenant: [] for tenant in weights}
        self.delayed: dict[str, float] = {}
        self.suspects: list[str] = []
        self.leases: dict[str, str] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self.gone: set[str] = set()
        self.served: dict[str, float] = dict.fromkeys(weights, 0.0)

    def register(self, worker: str) -> str:
        if worker not in self.gone:
            self.workers.setdefault(worker, {"number": 0, "batch": [], "alone": ""})
        return "ok"

    def submit(self, jobs: list[Job]) -> str:
        for job in jobs:
            if job.id not in self.jobs:
                self.jobs[job.id] = job
                self._enqueue(job)
        return "ok"

    def exchange(self, worker: str, number: int, ended: list[tuple[str, str, float]], room: int) -> Any:
        """Take what ended, hand out what waits; the same number gets the same answer."""
        fields = self.workers.get(worker)
        if not fields:
            return "gone"
        if number <= fields["number"]:
            return fields["batch"] if number == fields["number"] else []
        for id, verdict, delay_ms in ended:
            if self.leases.get(id) == worker:
                self._end(self.jobs[id], verdict, delay_ms)
        for id, due in list(self.delayed.items()):
            if due <= self.now:
                del self.delayed[id]
                self._enqueue(self.jobs[id])
        fields |= {"number": number, "batch": self._claim(worker, fields, min(room, BATCH))}
        return fields["batch"]

    def reap(self, worker: str, blamed: dict[str, str]) -> str:
        """Give back what a dead worker had; who may have killed it runs again alone."""
        fields = self.workers.pop(worker, None)
        self.gone.add(worker)
        held = [id for id, owner in self.leases.items() if owner == worker]
        for id in held if fields else []:
            del self.leases[id]
            job = self.jobs[id]
            if id in blamed:
                job.crashes += 1
                job.alone += fields["alone"] == id and len(held) == 1
                job.is_suspect = job.is_suspect or blamed[id] == "suspect" or job.crashes > 1
            if job.alone >= ALONE_MAX:
                job.outcomes.append("worker_lost")
            else:
                self._enqueue(job)
        return "done"

    def _end(self, job: Job, verdict: str, delay_ms: float) -> None:
        worker = self.leases.pop(job.id)
        if self.workers[worker]["alone"] == job.id:
            self.workers[worker]["alone"] = ""
        job.attempts += 1
        if verdict == "retry":
            self.delayed[job.id] = self.now + delay_ms
        else:
            job.outcomes.append(verdict)

    def _enqueue(self, job: Job) -> None:
        if job.is_suspect:
            self.suspects.append(job.id)
        else:
            self.queues[job.tenant].append(job.id)
            self.fair.join(job.tenant)

    def _claim(self, worker: str, fields: dict[str, Any], room: int) -> list[str]:
        busy = any(owner == worker for owner in self.leases.values())
        if fields["alone"]:
            return []
        if self.suspects:
            if busy:
                return []  # it is cleared for them
            fields["alone"] = self.suspects[0]
            self.leases[self.suspects[0]] = worker
            return [self.suspects.pop(0)]
        taken: list[str] = []
        while len(taken) < room and (waiting := [tenant for tenant, queue in self.queues.items() if queue]):
            tenant = min(waiting, key=lambda tenant: (self.fair.tag(tenant), tenant))
            id = self.queues[tenant].pop(0)
            ms = self.jobs[id].ms
            self.fair.serve(tenant, ms, self.weights[tenant])
            self.served[tenant] += ms
            if not self.queues[tenant]:
                self.fair.leave(tenant)
            self.leases[id] = worker
            taken.append(id)
        return taken


class Office:
    """Workers that run jobs, and whoever buries and replaces them."""

    def __init__(self, seed: int, faults: Faults, weights: dict[str, float], policy: WorkPolicy | None = None) -> None:
        self.world, self.policy = World(seed, faults), policy or WorkPolicy()
        self.server = WorkServer(self.policy, weights)
        self.world.server = self.server  # type: ignore[assignment]
        self.retries = RetryPolicy(attempts=3, delay=0.05, max_delay=0.2)
        self.living: dict[str, Desk] = {}
        self.count = 0
        self.keeper = Process(self.world, "master", "m")

    def open(self, workers: int) -> None:
        for _ in range(workers):
            self.count += 1
            Desk(self, f"w{self.count}")

    def bury(self, desk: "Desk", by_itself: bool) -> None:
        """A worker died: what it had begun is read from its marks."""
        del self.living[desk.id]
        begun, on_cpu = read_marks(bytes(desk.marks))
        blamed = dict(self.policy.blame(begun, on_cpu, by_itself=by_itself))
        self.keeper.run(self._replace(desk.id, blamed))

    def _replace(self, id: str, blamed: dict[str, str]) -> Actor:
        while True:
            try:
                yield Call("reap", id, blamed)
                break
            except Away:
                continue
        self.open(1)


class Desk:
    """One worker process and its marks."""

    def __init__(self, office: Office, id: str) -> None:
        self.office, self.world, self.id = office, office.world, id
        self.process = Process(office.world, f"worker {id}", "m")
        self.marks = bytearray(FILE_BYTES)
        self.by_itself = False
        self.running: dict[str, int] = {}
        self.ended: list[tuple[str, str, float]] = []
        self.number = 0
        office.living[id] = self
        self.process.on_end.append(lambda: office.bury(self, self.by_itself))
        self.process.run(self._work())

    def _work(self) -> Actor:
        while True:
            try:
                yield Call("register", self.id)
                break
            except Away:
                continue
        while True:
            self.number += 1
            ended, self.ended = self.ended[:BATCH], self.ended[BATCH:]
            room = MARKS - len(self.running) - 1
            while True:
                try:
                    taken = yield Call("exchange", self.id, self.number, ended, room)
                    break
                except Away:
                    continue  # with the same number, so that nothing is handed in or taken twice
            if taken == "gone":
                self.process.end("given up")
                yield Sleep(0)
            for id in taken:
                mark = next(mark for mark in range(1, MARKS + 1) if mark not in self.running.values())
                self.running[id] = mark
                write_mark(self.marks, mark, id, 0.0)
                self.process.run(self._run(self.office.server.jobs[id], mark))
            yield Sleep(3)

    def _run(self, job: Job, mark: int) -> Actor:
        job.begun += 1
        yield Sleep(job.ms)
        if job.kind in ("kills", "breaks"):
            self.by_itself = True
            if job.kind == "kills":
                self.marks[0:4] = mark.to_bytes(4, "little")
            self.process.end(f"{job.id} {job.kind}")
            yield Sleep(0)
        verdict, delay_ms = "done", 0.0
        if job.kind == "raises":
            wait = self.office.policy.next_retry(
                self.office.retries, job.attempts + 1, ("ValueError",), self.world.random.random()
            )
            verdict, delay_ms = ("dead", 0.0) if wait is None else ("retry", 1000 * wait)
        self.marks[mark * SLOT_BYTES : (mark + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
        del self.running[job.id]
        self.ended.append((job.id, verdict, delay_ms))
