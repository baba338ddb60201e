"""A real supervisord runs the program section (`make check-deploy`): start, crash, restart, stop, start again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.master import APPS, clean_environ, ended, running_processes
from support.wait import wait_until_sync

from agentpool.client import Pool, connect
from agentpool.errors import AgentPoolError

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
NAME = "agentpool-master"

CONFIG = f"""
app_dir = "{APPS}"
leader_lease = 2.0
[pools.p]
agents = ["sample_agents:Echo"]
min_workers = 2
drain_timeout = 5.0
"""

FRAME = """
[supervisord]
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
nodaemon=true
[unix_http_server]
file={folder}/s.sock
[supervisorctl]
serverurl=unix://{folder}/s.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""


class Supervisor:
    """A supervisord with the rendered program section."""

    def __init__(self, folder: Path) -> None:
        self.data_dir, self.log = folder / "data", folder / "log" / "master.log"
        for path in (self.data_dir, self.log.parent):
            path.mkdir()
        (folder / "venv").symlink_to(sys.prefix)
        (folder / "agentpool.toml").write_text(CONFIG)
        section = (DEPLOY / "supervisord.conf").read_text()
        # The user exists where it was installed; to wait shorter for "started" is all else that differs.
        section = section.replace("user=agentpool\n", "").replace("startsecs=3", "startsecs=1")
        for path, ours in (
            ("/opt/agentpool", folder),
            ("/etc/agentpool", folder),
            ("/var/lib/agentpool", self.data_dir),
            ("/var/log/agentpool", self.log.parent),
        ):
            assert path in section
            section = section.replace(path, str(ours))
        self.config = folder / "supervisord.conf"
        self.config.write_text(FRAME.format(folder=folder) + section)
        self.process = subprocess.Popen(
            [BIN / "supervisord", "-c", self.config],
            env=clean_environ(),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ctl(self, *words: str) -> str:
        command = [BIN / "supervisorctl", "-c", self.config, *words]
        done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def is_in(self, state: str) -> bool:
        return f"{NAME} " in (status := self.ctl("status", NAME)) and state in status

    def pid(self) -> int:
        text = self.ctl("pid", NAME).strip()
        return int(text) if text.isdecimal() else 0

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else self.ctl("status")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        for process in running_processes(str(self.log)):
            process.kill()
        for process in running_processes(str(self.data_dir)):
            process.kill()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    running = Supervisor(tmp_path)
    try:
        yield running
    finally:
        running.close()


def ask(supervisor: Supervisor, question: object) -> object:
    """Ask the pool something through a client of its own."""

    async def asking() -> object:
        async with connect(data_dir=supervisor.data_dir) as client:
            return await question(client.pool("p"))  # type: ignore[operator]

    return asyncio.run(asking())


async def ready_pids(pool: Pool) -> dict[str, int]:
    return {worker.process_id: worker.pid for worker in await pool.workers() if worker.status == "ready"}


def wait_for_workers(supervisor: Supervisor) -> dict[str, int]:
    wait_until_sync(lambda: supervisor.is_in("RUNNING"), 20, message=supervisor.text)

    def two() -> dict[str, int]:
        try:
            found = ask(supervisor, ready_pids)
        except AgentPoolError:  # Redis or the pool is not up yet
            return {}
        assert isinstance(found, dict)
        return found if len(found) == 2 else {}

    return wait_until_sync(two, 20, message=supervisor.text)


async def spawn(pool: Pool) -> None:
    await pool.spawn("Echo", id="kept")


async def run(pool: Pool) -> object:
    return await pool.agent("kept").run("hello")


def test_start_crash_restart_stop(supervisor: Supervisor) -> None:
    workers = wait_for_workers(supervisor)
    ask(supervisor, spawn)

    # The master crashes: supervisord starts another, which adopts the very same processes; the agent never stopped.
    first = supervisor.pid()
    os.kill(first, signal.SIGKILL)
    wait_until_sync(lambda: supervisor.pid() not in (0, first), 20, message=supervisor.text)
    wait_until_sync(lambda: supervisor.text().count('"worker.adopted"') == 2, 20, message=supervisor.text)
    assert wait_for_workers(supervisor) == workers
    assert ask(supervisor, run)

    # The log is still theirs to write to.
    pid = next(iter(workers.values()))
    assert os.readlink(f"/proc/{pid}/fd/2") == str(supervisor.log)

    # A stop on purpose drains, leaves nothing and is no reason to start again.
    assert "stopped" in supervisor.ctl("stop", NAME)
    assert all(ended(pid) for pid in workers.values())
    assert running_processes(str(supervisor.data_dir)) == []
    assert supervisor.is_in("STOPPED")
    assert "worker.killed" not in supervisor.text()

    # The agent comes back with the next start.
    assert "started" in supervisor.ctl("start", NAME)
    assert not set(wait_for_workers(supervisor)) & set(workers)
    wait_until_sync(lambda: ask(supervisor, run), 20, message=supervisor.text)
    assert "stopped" in supervisor.ctl("stop", NAME)
