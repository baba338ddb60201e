"""A real agentpool-master in a folder of its own, with server, zygotes and workers: started, asked, broken, stopped."""

import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil

from agentpool.agent import Agent
from agentpool.client import Client, connect
from agentpool.client.pool import Pool
from agentpool.doctor import Violation, examine
from agentpool.pool import run_sync
from agentpool.redis_server import running_url
from agentpool.testing.faults import running_processes
from agentpool.testing.waiting import wait_until_sync

__all__ = ["LiveMaster", "clean_environ", "ended", "live_pool"]

LEADING = ("REDIS_", "AGENTPOOL_", "NOTIFY_", "WATCHDOG_", "USE_MULTIPROCESSING")


def clean_environ(**more: str) -> dict[str, str]:
    """Return the environment without what could lead a master or a client elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEADING)}
    return {**kept, **more}


class LiveMaster:
    """One master process. `pools` maps names to settings; more top-level settings as keywords. Times are in seconds.

    Its configuration, log and data are in `folder`; with a `redis` table that has a URL it starts no server.
    """

    def __init__(self, folder: Path, pools: Mapping[str, Mapping[str, Any]], **top: Any) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.config = folder / "agentpool.toml"
        self.log = folder / "master.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.program = [sys.executable, "-c", "from agentpool.cli.master import main; main()"]
        """The beginning of its command line."""
        self.pools = list(pools)
        self.write_config(pools, **top)

    # -- configuration ------------------------------------------------------------------------------------------

    def write_config(self, pools: Mapping[str, Mapping[str, Any]], **top: Any) -> None:
        """Write the configuration file; a running master reads it again on SIGHUP."""
        top = {"data_dir": str(self.data_dir), **top}
        lines = [f"{key} = {json.dumps(value)}" for key, value in top.items() if not isinstance(value, dict)]
        for key, table in top.items():
            if isinstance(table, dict):
                lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
        for name, settings in pools.items():
            lines += [f"[pools.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        self.config.write_text("\n".join(lines) + "\n")

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True, **environ: str) -> "LiveMaster":
        """Start it, and with `wait` return when all its pools are supervised; also after it died."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "run", "--config", str(self.config), "--log-level", "debug"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=clean_environ(**environ),
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until it supervises; fails with its log when it ends instead."""

        def ready() -> bool:
            assert self.process
            assert self.process.poll() is None, f"the master ended:\n{self.output()}"
            return any(line.get("pid") == self.pid for line in self.logged("master.ready"))

        wait_until_sync(ready, timeout=20, message=self.output)

    @property
    def is_running(self) -> bool:
        """It runs on a server of its own: there is something to examine."""
        return self.process is not None and self.process.poll() is None and running_url(self.data_dir) is not None

    @property
    def pid(self) -> int:
        """Pid of the master that was started last."""
        assert self.process, "it was not started"
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process, "it was not started"
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it as a crash would, and wait for the end: workers and server live on, and `start` adopts them."""
        self.signal(signal.SIGKILL)
        assert self.process
        self.process.wait(5)

    def stop(self, timeout: float = 20) -> int:
        """Stop it as an operator would; returns the exit status."""
        assert self.process, "it was not started"
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def sweep(self) -> None:
        """End whatever of this master is left, however a test ended."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in self.children():
            process.kill()
            wait_until_sync(lambda process=process: ended(process.pid))  # type: ignore[misc]

    # -- its server ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """URL of its embedded server."""
        url = running_url(self.data_dir)
        assert url, "no embedded server runs"
        return url

    @property
    def server_pid(self) -> int:
        """Pid of its embedded server."""
        pid: int = json.loads((self.data_dir / "server.json").read_bytes())["pid"]
        return pid

    def kill_server(self) -> None:
        """Kill the server as a crash would; its master starts it again, with what had reached the disk."""
        os.kill(self.server_pid, signal.SIGKILL)

    def freeze_server(self) -> None:
        """Let the server answer nobody until `thaw_server`."""
        os.kill(self.server_pid, signal.SIGSTOP)

    def thaw_server(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.server_pid, signal.SIGCONT)

    # -- looking ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of this installation for the block."""
        async with connect(data_dir=self.data_dir) as client:
            yield client

    @asynccontextmanager
    async def pool(self, name: str = "") -> AsyncIterator[Pool]:
        """One of its pools for the block, the first unless named."""
        async with self.client() as client:
            yield client.pool(name or self.pools[0])

    async def faults(self) -> list[Violation]:
        """Return what doctor finds."""
        async with self.client() as client:
            return await examine(client.store)

    def output(self) -> str:
        """Return its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self) -> list[dict[str, Any]]:
        """Return the log's lines that are JSON."""
        lines = []
        for line in self.output().splitlines():
            if line.startswith("{"):
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
        return lines

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one event."""
        return [line for line in self.lines() if line.get("event") == event]

    def children(self) -> list[psutil.Process]:
        """Return every process that has files of this master's folder open: zygotes, workers, the server, itself."""
        return running_processes(str(self.folder))


@contextmanager
def live_pool(
    *agents: type[Agent] | str, name: str = "test_pool", app_dir: str | Path | None = None, **settings: Any
) -> Iterator[LiveMaster]:
    """Run a real master with one pool for the block: an embedded server, a zygote, worker processes.

    `agents` are classes of a module that can be imported, or `module:Class` with the folder of the module as `app_dir`;
    `settings` are the pool's. At the end of a block that went well doctor must find nothing; then all is stopped.
    """
    words = [agent if isinstance(agent, str) else f"{agent.__module__}:{agent.__qualname__}" for agent in agents]
    classes = [agent for agent in agents if not isinstance(agent, str)]
    folder = app_dir or (_app_dir(classes[0]) if classes else ".")
    quick = {"heartbeat_interval": 0.2, "heartbeat_timeout": 2.0, "max_workers": 2}
    with tempfile.TemporaryDirectory(prefix="agentpool-") as place:
        live = LiveMaster(Path(place), {name: {"agents": words, **quick, **settings}}, app_dir=str(folder))
        try:
            live.start()
            yield live
            if live.is_running:
                found = run_sync(live.faults)
                assert found == [], f"doctor found: {found}"
        finally:
            live.sweep()


def _app_dir(cls: type[Agent]) -> Path:
    """Return the folder from which a class's module can be imported by its name."""
    return Path(inspect.getfile(cls)).resolve().parents[cls.__module__.count(".")]


def ended(pid: int) -> bool:
    """Tell whether a process is gone, or a zombie that its parent has yet to bury."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
