"""Plays the master: leads a pool, orders workers, has a real zygote start them."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from support.wait import wait_until

from agentpool.protocol.codec import new_id
from agentpool.protocol.records import AgentRecord
from agentpool.protocol.tasks import Outcome, TaskEnvelope, TaskHeader
from agentpool.protocol.zygote import (
    PACKET_BYTES_MAX,
    Exited,
    Failed,
    Fork,
    Forked,
    FromZygote,
    Prepare,
    Ready,
    WorkerSettings,
    decode_from_zygote,
    encode,
)
from agentpool.store import Store

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parents[1] / "worker" / "apps"
POOL = "p"
MASTER = "m1"


class Zygote:
    """A zygote's process and the master's end of its socket."""

    def __init__(self, log: Path) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pidfds: dict[str, int] = {}
        self.forked: dict[str, Forked] = {}
        self.exited: dict[str, Exited] = {}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "workers")])}
        with theirs, log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentpool_worker.zygote", "--control-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
            )

    def send(self, message: Any) -> None:
        self.control.send(encode(message))

    async def receive(self, timeout: float = 10.0) -> FromZygote:
        loop = asyncio.get_running_loop()
        self.control.settimeout(timeout)
        packet, fds, _, _ = await loop.run_in_executor(None, socket.recv_fds, self.control, PACKET_BYTES_MAX, 1)
        if not packet:
            raise EOFError
        message = decode_from_zygote(packet)
        match message:
            case Forked():
                self.forked[message.worker_id] = message
                self.pidfds[message.worker_id] = fds[0]
            case Exited():
                self.exited[message.worker_id] = message
        return message

    async def prepare(self, settings: WorkerSettings, *agents: str) -> Ready | Failed:
        self.send(Prepare(agents=agents, app_dir=str(APPS), worker=settings))
        message = await self.receive()
        assert isinstance(message, Ready | Failed)
        return message

    async def exit_of(self, worker: str, timeout: float = 10.0) -> int:
        """Return how a worker ended, as `subprocess` would say it; raises `TimeoutError` when nothing comes."""
        while worker not in self.exited:
            await self.receive(timeout)
        return os.waitstatus_to_exitcode(self.exited[worker].status)

    def close(self) -> None:
        """End everything: asked twice (drain, hurry), so that what was covered is written down, then killed."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            living = [fd for fd in self.pidfds.values() if not select.select([fd], [], [], 0)[0]]
            for fd in living:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
            for fd in living:
                select.select([fd], [], [], {signal.SIGTERM: 0.5}.get(number, 5))
        for fd in self.pidfds.values():
            os.close(fd)
        self.control.close()
        self.process.wait(5)


class Master:
    """A pool with its leader's tokens, and what tests ask of its workers."""

    def __init__(self, store: Store, settings: WorkerSettings, log: Path) -> None:
        self.store, self.settings, self.log_path = store, settings, log
        self.zygote = Zygote(log)
        self.token = ""

    async def prepare(self, *classes: str, module: str = "sample_agents") -> Ready:
        ready = await self.zygote.prepare(self.settings, *(f"{module}:{name}" for name in classes))
        assert isinstance(ready, Ready), ready
        lead = await self.store.locks.lead(POOL, MASTER, lease_ms=600_000, gap_ms=600_000, hold_ms=0)
        self.token = lead.token
        settings = {
            "role_type": "dev", "min_workers": 0, "max_workers": 50, "agents_per_worker": self.settings.capacity,
            "placement": "least_loaded", "max_input_bytes": 100_000, "max_queued": 1000, "max_pending": 100,
            "heartbeat_timeout_ms": 10_000,
        }  # fmt: skip
        assert await self.store.pools.apply(POOL, self.token, ready.types, settings)
        return ready

    async def order(self, worker: str) -> Fork:
        secret = new_id()
        async with self.store.locks.placement(POOL, MASTER) as token:
            assert token
            ordered = await self.store.workers.reserve(
                POOL, [(worker, secret)], leader=self.token, placement=token, master=MASTER, max_starting=50
            )
        assert ordered == [worker]
        return Fork(worker_id=worker, secret=secret, master=MASTER)

    async def fork(self, worker: str = "w1") -> Forked:
        self.zygote.send(await self.order(worker))
        forked = await self.zygote.receive()
        assert isinstance(forked, Forked), forked
        await self.until_status(worker, "ready")
        return forked

    async def field(self, worker: str, name: str) -> str:
        connection, key = self.store.connection, self.store.keys.process(worker)
        return str(await connection.repeat(lambda: connection.redis.hget(key, name)) or "")

    async def until_status(self, worker: str, status: str) -> None:
        async def has() -> bool:
            return await self.field(worker, "status") == status

        await wait_until(has, message=self.log)

    def log(self) -> str:
        return self.log_path.read_text()

    def kill(self, worker: str, number: int) -> None:
        signal.pidfd_send_signal(self.zygote.pidfds[worker], number)

    # -- agents and tasks ---------------------------------------------------------------------------------------

    async def spawn(self, name: str, type: str, *, status: str = "idle", **options: Any) -> str:
        """Place an agent and wait until it has this status; returns its id."""
        settings = {"tenant": "default", "project": "", "max_idle_ms": 0, "heartbeat_ms": 0, "reply_to": ""} | options
        await self.store.agents.place(POOL, name, type, operation=new_id(), **settings)
        if status:
            await self.until_agent(name, status)
        return f"{POOL}/{name}"

    async def agent(self, name: str) -> AgentRecord | None:
        records = await self.store.agents.all(POOL)
        return next((record for record in records if record.agent_id == f"{POOL}/{name}"), None)

    async def until_agent(self, name: str, status: str) -> AgentRecord:
        async def has() -> AgentRecord | None:
            record = await self.agent(name)
            return record if record and record.status == status else None

        return await wait_until(has, message=self.log)

    async def until_gone(self, name: str) -> None:
        async def gone() -> bool:
            return await self.agent(name) is None

        await wait_until(gone, message=self.log)

    async def submit(
        self, input: Any, *, agent: str = "", type: str = "", tenant: str = "default", timeout_ms: int = 0
    ):
        id = f"{POOL}/{new_id()}"
        envelope = TaskEnvelope(msgspec.Raw(msgspec.json.encode(input)), timeout_ms=timeout_ms)
        await self.store.tasks.submit(id, TaskHeader("", agent, type, tenant), envelope)
        return id

    async def outcome(self, task: str, timeout: float = 10.0) -> Outcome:
        return await wait_until(lambda: self.store.tasks.read(task), timeout, message=self.log)

    async def run(self, input: Any, **target: Any) -> Outcome:
        return await self.outcome(await self.submit(input, **target))

    async def until_running(self, task: str) -> None:
        async def leased() -> bool:
            return (await self.store.tasks.info(task))["status"] == "leased"

        await wait_until(leased, message=self.log)

    async def events(self) -> list[str]:
        return [event.type for event in await self.store.events.read(POOL)]


@asynccontextmanager
async def mastering(redis_url: str, folder: Path, *, worker_url: str = "", **options: Any) -> AsyncIterator[Master]:
    """Yield a master; everything it started is ended afterwards. Workers may reach the server by another way."""
    values = {
        "pool": POOL, "redis_url": worker_url or redis_url, "install": "test1234", "host": "here", "host_id": "h1",
        "stack_dir": str(folder), "heartbeat_interval": 0.1, "heartbeat_timeout": 5.0, "capacity": 4,
        "agent_stop_timeout": 0.3, "boot_backoff": 0.05, "boot_failures_max": 3, "drain_timeout": 5.0,
        "retry_attempts": 1, "retry_delay": 0.05, "log_level": "debug", "log_format": "json",
    }  # fmt: skip
    store = Store.open(redis_url)
    master = Master(store, WorkerSettings(**(values | options)), folder / "log")
    try:
        yield master
    finally:
        master.zygote.close()
        await store.close()
