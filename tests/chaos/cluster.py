"""What a run harms: one server, and masters of several hosts that reach it through doors of their own.

All hosts are this machine; each has a data directory and so an identity of its own. Whoever looks from outside, like
the doctor, asks the server itself.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import psutil
import redis.asyncio
from chaos.proxy import Doors
from chaos.schedule import Timing
from redis.exceptions import RedisError
from support.master import Master, running_processes

from agentpool.config import RedisSettings
from agentpool.protocol.keys import Keys
from agentpool.redis_server import EmbeddedServer

__all__ = ["LIMITS", "POOL", "Cluster", "Host"]

POOL = "chaos"
APPS = Path(__file__).parent / "apps"
TESTS = Path(__file__).parent.parent
CLIENTS = "clients"
LIMITS = {"small": 3, "middle": 8}
"""Tenants with a limit of tasks at once."""
CALM_S = 20.0
PROBE_S = 0.3
"""How long an answer of the server is waited for by those who look whether there is one."""


class Host(Master):
    """A master that is started and stopped without blocking this loop."""

    name = ""

    @property
    def lives(self) -> bool:
        """Whether its process is there, running or stopped."""
        return self.process is not None and self.process.poll() is None

    def zygotes(self) -> list[int]:
        """Pids of its zygotes."""
        if not self.lives:
            return []
        with contextlib.suppress(psutil.Error):
            return [each.pid for each in psutil.Process(self.pid).children() if "zygote" in " ".join(each.cmdline())]
        return []

    @property
    def host_id(self) -> str:
        """The identity in its data directory."""
        with contextlib.suppress(OSError):
            return (self.data_dir / "host_id").read_text().strip()
        return ""

    @property
    def master_id(self) -> str:
        """As the leader's lock names it."""
        return f"{os.uname().nodename}-{self.host_id[:8]}"


class Cluster:
    """Server, doors and hosts in a folder. `open` starts all, `close` ends whatever is left."""

    def __init__(self, folder: Path, *, hosts: int, seed: int, timing: Timing) -> None:
        self.folder, self.timing = folder, timing
        self.effects_dir = folder / "effects"
        self.effects_dir.mkdir(parents=True)
        # In memory where there is room: a server that waits for its disk answers before it writes, and then even the
        # death of its process alone loses something.
        memory = Path("/dev/shm")
        self._server_dir = Path(tempfile.mkdtemp(prefix="chaos-", dir=memory if memory.is_dir() else folder))
        self.server = EmbeddedServer(self._server_dir, RedisSettings(appendfsync="everysec"))
        self._seed, self._count = seed, hosts
        self.hosts: list[Host] = []
        self.doors: Doors
        self.redis: Any = None
        """Straight to the server, for when it is well again."""
        self._asking: Any = None
        self.keys = Keys()

    async def open(self) -> None:
        """Start everything, and return when there are workers."""
        await asyncio.to_thread(self.server.start)
        names = [f"host-{n}" for n in range(self._count)]
        self.doors = Doors(str(self.server.socket_path), [*names, CLIENTS], self._seed)
        await self.doors.open()
        self._asking, self.redis = (
            redis.asyncio.Redis.from_url(
                self.server.url, decode_responses=True, socket_timeout=patience, socket_connect_timeout=patience
            )
            for patience in (PROBE_S, CALM_S)
        )
        for name in names:
            folder = self.folder / name
            folder.mkdir()
            host = Host(folder, {POOL: self._pool()}, **self._top(name))
            host.name = name
            with host.config.open("a") as file:
                file.writelines(
                    f"[pools.{POOL}.tenants.{tenant}]\nrunning = {most}\n" for tenant, most in LIMITS.items()
                )
            self.hosts.append(host)
            await self.start(host)
        for host in self.hosts:
            await asyncio.to_thread(host.wait_ready)

    async def start(self, host: Host) -> None:
        """Start a master; returns before it is ready."""
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        await asyncio.to_thread(host.start, wait=False, CHAOS_EFFECTS=str(self.effects_dir), PYTHONPATH=path)

    @property
    def clients_url(self) -> str:
        """How clients reach the server."""
        return self.doors.url(CLIENTS)

    def host_of(self, worker: dict[str, str]) -> Host | None:
        """Return the host of a worker's record."""
        return next((host for host in self.hosts if host.host_id == worker.get("host_id")), None)

    # -- looking ------------------------------------------------------------------------------------------------

    async def ask(self, *words: Any, default: Any = None) -> Any:
        """Ask the server itself; the default when it does not answer."""
        try:
            return await self._asking.execute_command(*words)
        except (TimeoutError, RedisError, OSError):
            return default

    async def workers(self) -> dict[str, dict[str, str]]:
        """Return the records of the workers that run, by id; empty while the server is away."""
        ids = await self.ask("ZRANGE", self.keys.workers(POOL), 0, -1, default=[])
        found = {}
        for worker in ids:
            record = await self.ask("HGETALL", self.keys.process(worker), default={})
            if record.get("pid") and is_worker(int(record["pid"]), worker):
                found[worker] = record
        return found

    async def leader(self) -> tuple[int, str]:
        """Return the fence and the id of the master that leads; (0, '') when none does."""
        token = await self.ask("GET", self.keys.leader_lock(POOL)) or ""
        fence, _, master = token.partition(" ")
        return (int(fence), master) if fence.isdigit() else (0, "")

    async def leading_host(self) -> Host | None:
        """Return the host whose master leads."""
        _, master = await self.leader()
        return next((host for host in self.hosts if host.lives and host.master_id == master), None)

    def processes(self) -> list[psutil.Process]:
        """Masters, zygotes and workers of all hosts."""
        return [process for host in self.hosts for process in running_processes(str(host.data_dir))]

    # -- the end ------------------------------------------------------------------------------------------------

    async def heal(self) -> None:
        """Let go of everything that is stopped, and have all hosts and the server run."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        if self.server.is_alive() and self.server.pid:
            os.kill(self.server.pid, signal.SIGCONT)
        await asyncio.to_thread(self.server.start)
        for host in self.hosts:
            if not host.lives:
                await self.start(host)

    async def stop(self) -> dict[str, int]:
        """Stop all masters as an operator would, together; returns their exit statuses."""
        statuses = await asyncio.gather(*(asyncio.to_thread(host.stop, 60) for host in self.hosts))
        return {host.name: status for host, status in zip(self.hosts, statuses, strict=True)}

    async def close(self) -> None:
        """End whatever is left, however the run ended."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for host in self.hosts:
            if host.lives:
                host.kill()
        if hasattr(self, "doors"):
            await self.doors.close()
        for client in (self._asking, self.redis):
            if client:
                await client.aclose()
        await asyncio.to_thread(self.server.stop)
        shutil.rmtree(self._server_dir, ignore_errors=True)

    # -- configuration ------------------------------------------------------------------------------------------

    def _pool(self) -> dict[str, Any]:
        timing = self.timing
        return {
            "agents": ["chaos_agents:Clerk", "chaos_agents:Keeper", "chaos_agents:Sole"],
            "min_workers": 3,
            "max_workers": 8,
            "agents_per_worker": 12,
            "heartbeat_interval": 0.4,
            "heartbeat_timeout": timing.heartbeat_timeout,
            "worker_idle_timeout": 15.0,
            "scale_cooldown": 15.0,
            "drain_timeout": 5.0,
            "agent_stop_timeout": 2.0,
            "start_timeout": 10.0,
            "boot_failures_max": 100,
            "boot_backoff": 0.1,
            "boot_backoff_max": 2.0,
            "retry_attempts": 3,
            "retry_delay": 0.1,
            "retry_max_delay": 1.0,
            "result_ttl": 300.0,
            "tenant_running": 20,
            "tenant_agents": 12,
            "tenant_tokens_per_minute": 0,
        }

    def _top(self, name: str) -> dict[str, Any]:
        return {
            "app_dir": str(APPS),
            "leader_lease": self.timing.leader_lease,
            "redis": {"url": self.doors.url(name), "command_timeout": 3.0, "connect_timeout": 3.0},
        }


def is_worker(pid: int, worker: str) -> bool:
    """Tell whether the process with this pid is this worker: a pid may be another's by now."""
    with contextlib.suppress(OSError):
        return worker in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def log_lines(host: Host, event: str) -> list[dict[str, Any]]:
    """Return the lines of a host's log about an event."""
    needle, found = json.dumps(event), []
    with contextlib.suppress(OSError), host.log.open() as file:
        for line in file:
            if needle in line:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return found
