"""A real agentpool-master in a folder of its own, for system tests: started, asked, broken, stopped."""

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from support.wait import wait_until_sync

from agentpool.client import Client, connect
from agentpool.doctor import examine
from agentpool.protocol.records import WorkerRecord
from agentpool.redis_server import running_url

__all__ = ["APPS", "Master", "clean_environ", "running_processes"]

APPS = Path(__file__).parent.parent / "system" / "apps"
BIN = Path(sys.executable).parent

BASE = {
    "agents": ["sample_agents:Echo"],
    "min_workers": 1,
    "max_workers": 4,
    "agents_per_worker": 10,
    "heartbeat_interval": 0.2,
    "heartbeat_timeout": 2.0,
    "drain_timeout": 5.0,
    "agent_stop_timeout": 2.0,
    "retry_attempts": 1,
}


def clean_environ(**more: str) -> dict[str, str]:
    """The environment without what could lead a master or a client elsewhere."""
    leading = ("REDIS_", "AGENTPOOL_", "NOTIFY_", "WATCHDOG_", "USE_MULTIPROCESSING")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(leading)}
    return {**kept, **more}


class Master:
    """One master process. `pools` maps names to settings over `BASE`; more top-level settings as keywords."""

    def __init__(self, folder: Path, pools: dict[str, dict[str, Any]] | None = None, **top: Any) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.config = folder / "agentpool.toml"
        self.log = folder / "master.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.within: list[str] = []
        """The beginning of its command line, when it is to run somewhere else, as in a namespace."""
        self.write_config(pools or {"developer_pool": {}}, **top)

    # -- configuration ------------------------------------------------------------------------------------------

    def write_config(self, pools: dict[str, dict[str, Any]], **top: Any) -> None:
        top = {"data_dir": str(self.data_dir), "app_dir": str(APPS), "leader_lease": 2.0, **top}
        lines = [f"{key} = {json.dumps(value)}" for key, value in top.items() if not isinstance(value, dict)]
        for key, table in top.items():
            if isinstance(table, dict):
                lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
        for name, settings in pools.items():
            lines += [f"[pools.{name}]", *(f"{k} = {json.dumps(v)}" for k, v in {**BASE, **settings}.items())]
        self.config.write_text("\n".join(lines) + "\n")

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True, die_at: str = "", **environ: str) -> "Master":
        """Start it; with `die_at` it kills itself before or after it calls a script, see `dying_master.py`."""
        program = [str(BIN / "agentpool-master")]
        if die_at:
            program = [sys.executable, str(Path(__file__).parent / "dying_master.py")]
            environ = {**environ, "DIE_AT": die_at}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *program, "run", "--config", str(self.config), "--log-level", "debug"],
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
        def ready() -> bool:
            assert self.process
            assert self.process.poll() is None, f"the master ended:\n{self.output()}"
            return any(line.get("event") == "master.ready" and line.get("pid") == self.pid for line in self.lines())

        wait_until_sync(ready, timeout=20, message=self.output)

    @property
    def is_running(self) -> bool:
        """It runs on a server of its own: there is something to examine."""
        return self.process is not None and self.process.poll() is None and running_url(self.data_dir) is not None

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.process
        self.process.wait(5)

    def stop(self, timeout: float = 20) -> int:
        """Stop it as an operator would; returns the exit status."""
        assert self.process
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
            wait_until_sync(lambda process=process: ended(process.pid))

    async def examine(self) -> None:
        """What must hold at the end of every test: doctor finds nothing."""
        async with self.client() as client:
            violations = await examine(client.store)
        assert violations == [], violations

    # -- looking ------------------------------------------------------------------------------------------------

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines that are JSON."""
        lines = []
        for line in self.output().splitlines():
            if line.startswith("{"):
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
        return lines

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == event]

    def children(self) -> list[psutil.Process]:
        """Every process that this master's data directory or install id marks: zygotes, workers, the server."""
        return running_processes(str(self.data_dir))

    @property
    def url(self) -> str:
        url = running_url(self.data_dir)
        assert url, "no embedded server runs"
        return url

    @asynccontextmanager
    async def client(self) -> Any:
        async with connect(data_dir=self.data_dir) as client:
            yield client


def running_processes(data_dir: str) -> list[psutil.Process]:
    """Processes of the installation in a data directory: the log file they write to tells."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid():
                continue
            title = " ".join(process.cmdline())
            files = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
            if ("agentpool" in title or "server" in title) and any(data_dir.removesuffix("/data") in f for f in files):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def ended(pid: int) -> bool:
    """Gone, or a zombie that its parent has yet to bury."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pid_of(workers: list[WorkerRecord], worker_id: str) -> int:
    """The pid of a worker."""
    return next(worker.pid for worker in workers if worker.process_id == worker_id)


__all__ += ["Client", "ended", "pid_of"]
