"""Who a process is: pid and start time, never pid alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.wait import wait_until_sync

from agentpool.errors import ConfigError
from agentpool.master.host import Host, cpu_ticks, is_stopped, open_process, send_signal, start_time
from agentpool.protocol.records import WorkerRecord


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_opened_by_pid_and_start_time(sleeper: subprocess.Popen) -> None:
    pidfd = open_process(sleeper.pid, start_time(sleeper.pid))
    assert pidfd is not None
    send_signal(pidfd, signal.SIGKILL)
    sleeper.wait()
    send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_a_reused_pid_is_not_opened(sleeper: subprocess.Popen) -> None:
    assert open_process(sleeper.pid, start_time(sleeper.pid) - 1) is None
    assert open_process(sleeper.pid, 0) is None
    assert sleeper.poll() is None


def test_a_process_that_is_gone_has_no_start_time(sleeper: subprocess.Popen) -> None:
    sleeper.kill()
    wait_until_sync(lambda: start_time(sleeper.pid) == 0)
    assert open_process(sleeper.pid, 1) is None
    assert cpu_ticks(sleeper.pid) == 0
    assert not is_stopped(sleeper.pid)


def test_a_stopped_process_is_seen(sleeper: subprocess.Popen) -> None:
    assert not is_stopped(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    wait_until_sync(lambda: is_stopped(sleeper.pid))


def test_the_host_keeps_its_identity_in_the_data_directory(tmp_path: Path) -> None:
    host = Host.find(tmp_path)
    assert Host.find(tmp_path) == host
    assert host.master_id.endswith(host.host_id[:8])
    assert Host.find(tmp_path, "configured").host_id == "configured"


def test_local_means_host_boot_and_pid_namespace(tmp_path: Path) -> None:
    host = Host.find(tmp_path)
    same = {"host_id": host.host_id, "boot_id": host.boot_id, "pid_ns": host.pid_ns}
    base = {"process_id": "w", "pool_name": "p", "status": "ready"}
    assert host.is_local(WorkerRecord(**base, **same))
    for field in same:
        assert not host.is_local(WorkerRecord(**base, **{**same, field: "other"}))


def test_an_unwritable_data_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Choose another data_dir"):
        Host.find(tmp_path / "missing")
