"""The plugin is there wherever agentpool is installed, and does nothing unless it is asked."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from agentpool.testing import LiveMaster, ended, throw_away_server, wait_until_sync, worker_pid


def test_pytest_finds_it() -> None:
    found = {point.value for point in entry_points(group="pytest11")}
    assert "agentpool.pytest_plugin" in found


def test_it_is_inert_unless_a_fixture_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    assert 'agentpool.pytest_plugin' in sys.modules\n"
        "    assert not {'redis', 'psutil', 'agentpool.testing', 'agentpool.client'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout


def test_nothing_is_left_of_a_throw_away_server() -> None:
    with throw_away_server() as server:
        pid, folder = server.pid, server.data_dir
        assert pid
        assert folder.exists()
    wait_until_sync(lambda: ended(pid))
    assert not folder.exists()


def test_a_worker_that_is_not_there_is_named() -> None:
    with pytest.raises(LookupError, match="no worker nobody runs on this host"):
        worker_pid("nobody")


async def test_a_server_that_died_and_one_that_froze_come_back(agentpool_live) -> None:
    live: LiveMaster = agentpool_live("sample_agents:Echo", app_dir=Path(__file__).parents[1] / "system" / "apps")
    async with live.pool() as pool:
        assert await pool.run("Echo", "a", timeout=20) == "a"
        before = live.server_pid
        live.kill_server()
        wait_until_sync(lambda: live.server_pid != before, timeout=20)
        assert await pool.run("Echo", "b", timeout=20) == "b"
        live.freeze_server()
        live.thaw_server()
        assert await pool.run("Echo", "c", timeout=20) == "c"
        live.kill()
        live.start()
        assert await pool.run("Echo", "d", timeout=20) == "d"
    assert live.logged("worker.adopted")
