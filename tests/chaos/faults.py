"""Carrying faults out: one function for each kind, which returns when it is over. What died stays dead.

Each notes on whom it worked, so that what happened to those is told from what nobody caused.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from chaos.cluster import CLIENTS, Cluster, Host
from chaos.schedule import Fault, Kind
from support.door import OPEN, Harm

from agentpool.clock import boottime

__all__ = ["Done", "Faults"]


class Done(msgspec.Struct):
    """A fault as it was carried out. Times are in s by CLOCK_BOOTTIME."""

    fault: Fault
    began: float
    ended: float = 0.0
    healed: float = 0.0
    """When nothing was harmed any more; what was started again may not run yet."""
    workers: list[str] = []
    """Workers on which it worked."""
    hosts: list[str] = []
    """Hosts (names) whose master or link it worked on."""
    server: bool = False
    """It kept the server from answering, or cut all connections."""
    skipped: str = ""
    """Why it could not be carried out."""
    leader_fence: int = 0
    """The leader's fence when it began."""
    recovered: dict[str, float] = {}
    """What was measured, in s."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.ended > 0


Carry = Callable[["Faults", Fault, Done], Awaitable[None]]


class Faults:
    """Carries faults out on a cluster; `done` has all of them, those under way too."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.done: list[Done] = []
        self._busy: set[str] = set()
        """Hosts whose master is down or stopped by a fault."""

    def active(self) -> list[Done]:
        """Return the faults that are under way."""
        return [done for done in self.done if not done.is_over]

    async def carry_out(self, fault: Fault, done: Done) -> None:
        """Do it and undo it."""
        self.done.append(done)
        done.leader_fence = (await self._cluster.leader())[0]
        try:
            await _CARRY[fault.kind](self, fault, done)
        except Exception as error:
            done.skipped = done.skipped or repr(error)
        finally:
            done.ended = boottime()
            done.healed = done.healed or done.ended

    # -- workers ------------------------------------------------------------------------------------------------

    async def _victims(self, fault: Fault, done: Done, count: int = 1, host: Host | None = None) -> list[int]:
        """Choose workers; returns their pids."""
        workers = await self._cluster.workers()
        if host:
            workers = {id: record for id, record in workers.items() if record.get("host_id") == host.host_id}
        ready = sorted(id for id, record in workers.items() if record.get("status") == "ready")
        dice = random.Random(fault.pick)
        done.workers = dice.sample(ready, min(count, len(ready)))
        if not done.workers:
            done.skipped = "there was no worker"
        return [int(workers[id]["pid"]) for id in done.workers]

    async def worker_kill(self, fault: Fault, done: Done) -> None:
        pids = await self._victims(fault, done, 2 if fault.kind is Kind.WORKERS_KILL else 1)
        done.began = boottime()
        for pid in pids:
            _send(pid, signal.SIGKILL)

    async def worker_stop(self, fault: Fault, done: Done) -> None:
        for pid in await self._victims(fault, done):
            async with _stopped(pid):
                await asyncio.sleep(fault.seconds)

    async def worker_drain(self, fault: Fault, done: Done) -> None:
        for pid in await self._victims(fault, done):
            _send(pid, signal.SIGTERM)

    # -- masters and zygotes ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _master(self, fault: Fault, done: Done, *, leads: bool) -> AsyncIterator[Host | None]:
        """Choose a master that no other fault works on."""
        leader = await self._cluster.leading_host()
        free = [host for host in self._cluster.hosts if host.lives and host.name not in self._busy]
        chosen = [host for host in free if (host is leader) == leads]
        if not chosen or (len(free) == 1 and len(self._cluster.hosts) > 1):
            done.skipped = f"no {'leader' if leads else 'other master'} was there"
            yield None
            return
        host = chosen[int(fault.pick * len(chosen))]
        done.hosts = [host.name]
        self._busy.add(host.name)
        try:
            yield host
        finally:
            self._busy.discard(host.name)

    async def master_kill(self, fault: Fault, done: Done) -> None:
        async with self._master(fault, done, leads=fault.kind is Kind.LEADER_KILL) as host:
            if host:
                done.began = boottime()
                await asyncio.to_thread(host.kill)
                await asyncio.sleep(fault.seconds)
                await self._start(host, done)

    async def leader_freeze(self, fault: Fault, done: Done) -> None:
        async with self._master(fault, done, leads=True) as host:
            if host:
                done.began = boottime()
                async with _stopped(host.pid):
                    await asyncio.sleep(fault.seconds)

    async def leader_restart(self, fault: Fault, done: Done) -> None:
        async with self._master(fault, done, leads=True) as host:
            if host:
                done.began = boottime()
                status = await asyncio.to_thread(host.stop, 40)
                if status:
                    done.recovered["exit status"] = status
                await self._start(host, done)

    async def _start(self, host: Host, done: Done) -> None:
        """Start a master, again if it ends because the server is away."""
        await self._cluster.start(host)
        done.healed = boottime()
        for _ in range(100):
            await asyncio.sleep(0.3)
            if not host.lives:
                await self._cluster.start(host)
            elif host.zygotes():
                return

    async def zygote_kill(self, fault: Fault, done: Done) -> None:
        host, zygote = self._zygote(fault)
        if zygote:
            done.hosts = [host.name]
            _send(zygote, signal.SIGKILL)
        else:
            done.skipped = "there was no zygote"

    async def zygote_stop(self, fault: Fault, done: Done) -> None:
        """Stop a zygote, and kill a worker so that there is something to fork."""
        host, zygote = self._zygote(fault)
        if not zygote:
            done.skipped = "there was no zygote"
            return
        done.hosts = [host.name]
        async with _stopped(zygote):
            pids = await self._victims(fault, done, host=host) or await self._victims(fault, done)
            done.skipped = ""
            for pid in pids:
                _send(pid, signal.SIGKILL)
            await asyncio.sleep(fault.seconds)

    def _zygote(self, fault: Fault) -> tuple[Host, int]:
        hosts = [host for host in self._cluster.hosts if host.lives and host.zygotes()]
        if not hosts:
            return self._cluster.hosts[0], 0
        host = hosts[int(fault.pick * len(hosts))]
        return host, host.zygotes()[0]

    # -- the server ---------------------------------------------------------------------------------------------

    async def server_kill(self, fault: Fault, done: Done) -> None:
        server, done.server = self._cluster.server, True
        if server.pid:
            os.kill(server.pid, signal.SIGKILL)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(server.start)

    async def server_restart(self, fault: Fault, done: Done) -> None:
        server, done.server = self._cluster.server, True
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(server.start)

    async def server_stop(self, fault: Fault, done: Done) -> None:
        done.server = True
        if pid := self._cluster.server.pid:
            async with _stopped(pid):
                await asyncio.sleep(fault.seconds)

    async def client_pause(self, fault: Fault, done: Done) -> None:
        done.server = True
        mode = "ALL" if fault.way < 0.5 else "WRITE"
        await self._cluster.ask("CLIENT", "PAUSE", round(1000 * fault.seconds), mode)
        await asyncio.sleep(fault.seconds)

    async def script_flush(self, fault: Fault, done: Done) -> None:
        await self._insist("SCRIPT", "FLUSH")

    async def function_flush(self, fault: Fault, done: Done) -> None:
        await self._insist("FUNCTION", "FLUSH")

    async def client_kill(self, fault: Fault, done: Done) -> None:
        done.server = True
        await self._insist("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        await self._insist("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _insist(self, *words: str) -> None:
        for _ in range(100):
            if await self._cluster.ask(*words) is not None:
                return
            await asyncio.sleep(0.1)
        raise RuntimeError("the server did not answer")

    # -- links --------------------------------------------------------------------------------------------------

    def _door(self, fault: Fault, done: Done) -> str:
        doors = [*(host.name for host in self._cluster.hosts), CLIENTS]
        name = doors[int(fault.pick * len(doors))]
        done.hosts = [name]
        return name

    async def replies_dropped(self, fault: Fault, done: Done) -> None:
        await self._harm(self._door(fault, done), Harm(drop=0.02 + 0.2 * fault.way), fault.seconds)

    async def link_slow(self, fault: Fault, done: Done) -> None:
        await self._harm(self._door(fault, done), Harm(delay=0.01 + 0.2 * fault.way), fault.seconds)

    async def partition(self, fault: Fault, done: Done) -> None:
        """Cut off a host that has workers: silently in both directions, or in one, or so that connections end. When it
        heals, what was held up arrives late, or is lost with its connections.
        """
        ids = {record.get("host_id") for record in (await self._cluster.workers()).values()}
        hosts = [host.name for host in self._cluster.hosts if host.host_id in ids]
        if not hosts:
            done.skipped = "no host had workers"
            return
        door = hosts[int(fault.pick * len(hosts))]
        done.hosts = [door]
        harm, cut = _CUTS[int(fault.way * len(_CUTS))]
        await self._harm(door, harm, fault.seconds, cut=cut)

    async def _harm(self, door: str, harm: Harm, seconds: float, *, cut: bool = False) -> None:
        await self._cluster.doors.set(door, harm)
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._cluster.doors.set(door, OPEN, cut=cut)


_CUTS = (
    (Harm(hold_requests=True, hold_replies=True), False),
    (Harm(hold_requests=True, hold_replies=True), True),
    (Harm(hold_requests=True), False),
    (Harm(hold_requests=True), True),
    (Harm(refuse=True), True),
    (Harm(hold_replies=True), False),
)
"""What a door does when its host is cut off, and whether connections end when it heals."""


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@asynccontextmanager
async def _stopped(pid: int) -> AsyncIterator[None]:
    """Have a process stopped; it goes on in any case, if it is there still."""
    began = _start_of(pid)
    _send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if _start_of(pid) == began:
            _send(pid, signal.SIGCONT)


def _start_of(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""


_CARRY: dict[Kind, Carry] = {
    Kind.WORKER_KILL: Faults.worker_kill,
    Kind.WORKERS_KILL: Faults.worker_kill,
    Kind.WORKER_STOP: Faults.worker_stop,
    Kind.WORKER_FREEZE: Faults.worker_stop,
    Kind.WORKER_DRAIN: Faults.worker_drain,
    Kind.LEADER_KILL: Faults.master_kill,
    Kind.FOLLOWER_KILL: Faults.master_kill,
    Kind.LEADER_FREEZE: Faults.leader_freeze,
    Kind.LEADER_RESTART: Faults.leader_restart,
    Kind.ZYGOTE_KILL: Faults.zygote_kill,
    Kind.ZYGOTE_STOP: Faults.zygote_stop,
    Kind.SERVER_KILL: Faults.server_kill,
    Kind.SERVER_RESTART: Faults.server_restart,
    Kind.SERVER_STOP: Faults.server_stop,
    Kind.SERVER_FREEZE: Faults.server_stop,
    Kind.CLIENT_PAUSE: Faults.client_pause,
    Kind.SCRIPT_FLUSH: Faults.script_flush,
    Kind.FUNCTION_FLUSH: Faults.function_flush,
    Kind.CLIENT_KILL: Faults.client_kill,
    Kind.REPLIES_DROPPED: Faults.replies_dropped,
    Kind.LINK_SLOW: Faults.link_slow,
    Kind.PARTITION: Faults.partition,
    Kind.PARTITION_LONG: Faults.partition,
}
