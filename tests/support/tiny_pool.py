"""A pool whose master and workers are a few lines on the store, for tests of what clients see.

It keeps every promise of a real worker towards Redis (register, confirm, exchange) in the test's own loop.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from agentpool.clock import wall_ms
from agentpool.errors import InvalidInput
from agentpool.protocol.codec import encode_json, new_id
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.states import AgentStatus, TaskStatus
from agentpool.protocol.tasks import ClaimedTask, Outcome, TaskError
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.tasks import EndedTask
from agentpool.store.workers import beat_worker, register_worker

__all__ = ["POOL", "TinyPool", "TinyWorker", "tiny_pool"]

POOL = "developer_pool"
MASTER = "master-1"
SETTINGS: dict[str, object] = {
    "role_type": "developer",
    "min_workers": 0,
    "max_workers": 3,
    "agents_per_worker": 10,
    "placement": "least_loaded",
    "max_input_bytes": 100_000,
    "max_queued": 1000,
    "max_pending": 100,
    "heartbeat_timeout_ms": 10_000,
    "result_ttl_ms": 60_000,
}

Handler = Callable[[Any], Awaitable[Any]]


async def echo(input: Any) -> Any:
    """Return the input."""
    return input


class TinyWorker:
    """Confirms, takes tasks and hands them in; `handler` is what its agents do."""

    def __init__(self, store: Store, pool: str, id: str, capacity: int, handler: Handler = echo) -> None:
        self.store, self.pool, self.id, self.capacity, self.handler = store, pool, id, capacity, handler
        self.starts = True
        """False: agents stay `placed`, as if `start()` did not return."""
        self.attempts = 0
        """How often what fails is tried before it is a dead letter; 0: it has failed, and that is all."""
        self._exchanges = 0
        self._ended: list[EndedTask] = []
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._work())

    async def stop(self) -> None:
        tasks = [task for task in (self._loop, *self._runs.values()) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def beat(self) -> None:
        connection = SyncConnection(self.store.connection.url)
        beat_worker(connection, self.pool, self.id, loop_lag_ms=0, memory_bytes=1, cpu_percent=0)
        connection.close()

    async def _work(self) -> None:
        while await self.work_once():
            await asyncio.sleep(0.005)

    async def work_once(self) -> bool:
        view = await self.store.workers.view(self.pool, self.id)
        if view is None:
            return False
        for task_id in view.cancels:
            if run := self._runs.get(task_id):
                run.cancel()
        idle = []
        for agent in view.agents:
            name = agent.agent_id.partition("/")[2]
            if agent.status is AgentStatus.PLACED and self.starts:
                await self.store.agents.confirm(self.pool, self.id, name, agent.incarnation)
            elif agent.status is AgentStatus.IDLE:
                idle.append(name)
        self._exchanges += 1
        ended = self._ended[:50]
        answer = await self.store.tasks.exchange(
            self.pool, self.id, self._exchanges, room=self.capacity, ended=ended, names=idle
        )
        del self._ended[: len(ended)]
        for task in answer.tasks if answer else ():
            self._runs[task.id] = asyncio.create_task(self._run(task))
        return True

    async def _run(self, task: ClaimedTask) -> None:
        outcome = await self._outcome(task)
        verdict = "done"
        if self.attempts and outcome.status is TaskStatus.FAILED:
            verdict = "retry" if task.attempt < self.attempts else "dead"
        line = {"at": wall_ms(), "task_id": task.id, "status": outcome.status, "tenant": task.header.tenant}
        ended = EndedTask(
            task.id,
            task.header.agent_name,
            verdict,
            encode_json(outcome),
            run_ms=1.0,
            audit=encode_json({**line, "process_id": self.id}),
        )
        self._ended.append(ended)
        self._runs.pop(task.id, None)

    async def _outcome(self, task: ClaimedTask) -> Outcome:
        assert task.envelope
        timeout = task.envelope.timeout_ms / 1000 or None
        try:
            result = await asyncio.wait_for(self.handler(msgspec.json.decode(task.envelope.input)), timeout)
        except asyncio.CancelledError:
            return self._failed(TaskStatus.CANCELLED, TaskError("TaskCancelled", "cancelled while it ran"))
        except TimeoutError:
            return self._failed(TaskStatus.TIMED_OUT, TaskError("TimeoutError", "its time was over"))
        except InvalidInput as error:
            return self._failed(TaskStatus.INVALID, TaskError("InvalidInput", str(error), path=error.path))
        except Exception as error:
            return self._failed(TaskStatus.FAILED, TaskError(type(error).__name__, str(error), "Traceback …"))
        return Outcome(TaskStatus.SUCCEEDED, self.id, result=msgspec.Raw(msgspec.json.encode(result)))

    def _failed(self, status: TaskStatus, error: TaskError) -> Outcome:
        return Outcome(status, self.id, error=error)


class TinyPool:
    """One pool that is led, and its workers."""

    def __init__(self, store: Store, name: str = POOL) -> None:
        self.store, self.name = store, name
        self.token = ""
        self.workers: list[TinyWorker] = []

    async def open(self, *types: str, **settings: object) -> None:
        lead = await self.store.locks.lead(self.name, MASTER, lease_ms=60_000, gap_ms=2000, hold_ms=0)
        self.token = lead.token
        infos = [TypeInfo(name=type, module="tests") for type in types or ("Echo",)]
        await self.store.pools.apply(self.name, self.token, infos, {**SETTINGS, **settings})

    async def order(self, id: str = "") -> tuple[str, str]:
        """Order one worker; returns (id, secret)."""
        id, secret = id or new_id(), new_id()
        async with self.store.locks.placement(self.name, MASTER) as token:
            assert token
            ordered = await self.store.workers.reserve(
                self.name, [(id, secret)], leader=self.token, placement=token, master=MASTER, max_starting=10
            )
        assert ordered == [id]
        return id, secret

    async def add_worker(
        self, id: str = "", *, capacity: int = 10, handler: Handler = echo, works: bool = True, **fields: object
    ) -> TinyWorker:
        """Start a worker; with `works=False` it is registered but does nothing."""
        id, secret = await self.order(id)
        connection = SyncConnection(self.store.connection.url)
        register_worker(connection, self.name, id, secret, capacity, {"pid": 1, "host": "here", **fields})
        connection.close()
        worker = TinyWorker(self.store, self.name, id, capacity, handler)
        if works:
            worker.start()
        self.workers.append(worker)
        return worker

    async def lose(self, worker: TinyWorker, reason: str = "killed by signal 9") -> None:
        await worker.stop()
        done = await self.store.workers.reap(self.name, worker.id, proof="owner", authority=MASTER, reason=reason)
        assert done == "done"

    async def close(self) -> None:
        for worker in self.workers:
            await worker.stop()


@contextlib.asynccontextmanager
async def tiny_pool(url: str, name: str = POOL, *types: str, **settings: object) -> AsyncIterator[TinyPool]:
    """A led pool without workers."""
    store = Store.open(url)
    pool = TinyPool(store, name)
    await pool.open(*types, **settings)
    try:
        yield pool
    finally:
        await pool.close()
        await store.close()
