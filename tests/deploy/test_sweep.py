"""deploy/sweep-workers.sh on real processes: it ends what a stop on purpose left, and nothing after a crash."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.wait import wait_until_sync

SCRIPT = Path(__file__).parents[2] / "deploy" / "sweep-workers.sh"

PROCESS = """
import setproctitle, signal, sys
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "twice" in sys.argv:
    def first(*_): signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, first)
setproctitle.setproctitle(sys.argv[1])
print("up", flush=True)
while True: signal.pause()
"""

WORKER = "agentpool-worker p w1 @abcd1234"
ZYGOTE = "agentpool-zygote p @abcd1234"
SERVER = "/usr/bin/valkey-server unixsocket:/x/redis.sock"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with a title; all are ended after the test."""
    running: list[subprocess.Popen[str]] = []

    def start_one(title: str, *manner: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", PROCESS, title, *manner], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        return process

    yield start_one
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def sweep(*arguments: str, result: str | None = None) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if name != "SERVICE_RESULT"}
    if result is not None:
        environ["SERVICE_RESULT"] = result
    return subprocess.run(
        [str(SCRIPT), *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def group(folder: Path, *processes: "subprocess.Popen[str]") -> str:
    """A folder that looks like a control group with these processes in it, and one pid that is long gone."""
    (folder / "cgroup.procs").write_text("".join(f"{process.pid}\n" for process in processes) + f"{2**22 - 1}\n")
    return str(folder)


def status_of(process: "subprocess.Popen[str]") -> int | None:
    """Exit status, or None while it lives; the script has come to an end, so there is nothing to wait for."""
    try:
        return process.wait(0.5)
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.parametrize("result", ["signal", "exit-code", "core-dump", "watchdog", "oom-kill", None])
def test_after_a_crash_nothing_is_touched(start: Start, tmp_path: Path, result: str | None) -> None:
    worker = start(WORKER)
    done = sweep("--cgroup", group(tmp_path, worker), result=result)
    assert done.returncode == 0
    assert "live on" in done.stdout
    assert worker.poll() is None


@pytest.mark.parametrize("result", ["success", "timeout"])
def test_after_a_stop_on_purpose_all_end(start: Start, tmp_path: Path, result: str) -> None:
    left = [start(WORKER), start(ZYGOTE), start("some-tool of an agent"), start(SERVER)]
    outside = start("agentpool-worker p w2 @abcd1234")
    done = sweep("--cgroup", group(tmp_path, *left), result=result)
    assert (done.returncode, done.stderr) == (0, "")
    assert [status_of(process) for process in left] == [-signal.SIGTERM] * 4
    assert outside.poll() is None


def test_the_server_ends_last(start: Start, tmp_path: Path) -> None:
    done = sweep("--cgroup", group(tmp_path, start(SERVER), start("tool"), start(WORKER)), result="success")
    kinds = [line.split()[3] for line in done.stdout.splitlines() if " to " in line]
    assert kinds == ["worker", "other", "server"]


def test_a_worker_gets_a_second_term_and_then_kill(start: Start, tmp_path: Path) -> None:
    twice, stubborn = start(WORKER, "twice"), start("agentpool-worker p w2 @abcd1234", "stubborn")
    done = sweep("--cgroup", group(tmp_path, twice, stubborn), "--grace", "2", result="timeout")
    assert done.returncode == 0
    assert status_of(twice) == -signal.SIGTERM
    assert status_of(stubborn) == -signal.SIGKILL


def test_force_needs_no_result(start: Start, tmp_path: Path) -> None:
    worker = start(WORKER)
    assert sweep("--force", "--cgroup", group(tmp_path, worker)).returncode == 0
    assert status_of(worker) == -signal.SIGTERM


def test_by_installation_only_its_workers_end(start: Start) -> None:
    mark = f"t{os.getpid()}"
    mine, zygote = start(f"agentpool-worker p w1 @{mark}"), start(f"agentpool-zygote p @{mark}")
    others = [start(WORKER), start(SERVER), start(f"vim notes @{mark}")]
    assert sweep("--install", mark, "--force").returncode == 0
    assert [status_of(process) for process in (mine, zygote)] == [-signal.SIGTERM] * 2
    assert [process.poll() for process in others] == [None] * 3


def test_refuses_to_guess_outside_systemd() -> None:
    """Run from a shell, its own control group would be the user's session."""
    done = sweep("--force")
    assert done.returncode == 2
    assert "--cgroup or --install" in done.stderr


@pytest.mark.parametrize("arguments", [["--grace", "soon"], ["--what"], ["--cgroup", "/x", "--install", "y"]])
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    done = sweep(*arguments, result="success")
    assert done.returncode == 2
    assert "sweep-workers: " in done.stderr


def test_a_zygote_without_a_title_yet_counts(start: Start, tmp_path: Path) -> None:
    young = start("python -P -m agentpool_worker.zygote --control-fd 7")
    done = sweep("--cgroup", group(tmp_path, young), result="success")
    assert "SIGTERM to worker" in done.stdout
    wait_until_sync(lambda: young.poll() is not None)
