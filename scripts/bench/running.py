"""A real `agentpool-master`, in a folder of its own with an embedded server, and stopped whatever happens.

Stopping is a ladder: ask (SIGTERM), hurry (a second one), SIGKILL. Because workers and server outlive a killed master
on purpose, the last rung also ends those of this folder: workers by what Redis says of them, compared with their start
time, and the server through the product's own `EmbeddedServer`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import redis

from agentpool.config import RedisSettings
from agentpool.master.host import open_process, send_signal
from agentpool.protocol.keys import Keys
from agentpool.redis_server import EmbeddedServer, running_url
from bench.processes import children_of, title_of

__all__ = ["POOL", "SCRIPTS", "BenchError", "RunningMaster", "clean_environment", "scratch_server", "wait_for"]

SCRIPTS = Path(__file__).resolve().parent.parent
POOL = "bench"
READY_S, TERM_S, HURRY_S = 60.0, 30.0, 10.0


class BenchError(Exception):
    """Something did not run as it must for a figure to mean anything."""


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60.0, interval: float = 0.005) -> Any:
    """Return the first true value of `condition`; times are in seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise BenchError(f"not within {timeout:g} s: {what}")
        time.sleep(interval)
    return value


def clean_environment() -> dict[str, str]:
    """Return the environment without what says where Redis is or how agentpool is set."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("REDIS_", "AGENTPOOL_", "USE_MULTIPROCESSING"))
    }


class RunningMaster:
    """A master with the one pool `bench`; `settings` are the pool's. Use it in a `with` statement.

    With `redis_url` it works on that server, which it leaves running, and starts none.
    """

    def __init__(self, *, redis_url: str = "", **settings: object) -> None:
        self._redis_url = redis_url
        self._settings = {"agents": ["bench.agents:Idle"], "worker_idle_timeout": 3600.0, **settings}
        self._stack = contextlib.ExitStack()
        self.keys = Keys()
        self.url = ""
        self.redis: Any = None
        """A blocking connection of the benchmark's own."""
        self._known: dict[str, tuple[int, int]] = {}
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> "RunningMaster":
        with self._stack:
            self._folder = self._stack.enter_context(_folder())
            self._stack.callback(self._end_rest)
            self._launch()
            self._stack.callback(self._stop)
            self.url = wait_for(self._find_server, "the embedded server answers", READY_S)
            self.redis = redis.Redis.from_url(self.url, decode_responses=True)
            self._wait_ready(int(str(self._settings.get("min_workers", 1))))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """The master's pid."""
        return self._process.pid

    @property
    def server_pid(self) -> int:
        """The embedded server's pid."""
        return int(self.redis.info("server")["process_id"])

    @property
    def zygote_pids(self) -> list[int]:
        """Pids of the processes that workers are forked from."""
        return [pid for pid in children_of(self.pid) if "agentpool-zygote" in title_of(pid)]

    def worker_pids(self) -> dict[str, tuple[int, int]]:
        """Return worker id -> (pid, start time) of all workers that Redis knows."""
        pipe = self.redis.pipeline(transaction=False)
        workers = self.redis.zrange(self.keys.workers(POOL), 0, -1)
        for worker in workers:
            pipe.hmget(self.keys.process(worker), "pid", "start_time")
        rows = zip(workers, pipe.execute(), strict=True)
        return {worker: (int(pid), int(started)) for worker, (pid, started) in rows if pid}

    def ready_count(self) -> int:
        """Return the number of workers that take agents."""
        return int(self.redis.zcard(self.keys.processes(POOL)))

    def is_steady(self, count: int) -> bool:
        """Tell whether exactly so many workers are there, all of them ready."""
        return self.ready_count() == count == int(self.redis.zcard(self.keys.workers(POOL)))

    # -- starting and stopping ----------------------------------------------------------------------------------

    def _launch(self) -> None:
        config = self._folder / "agentpool.toml"
        lines = [f"data_dir = {json.dumps(str(self._folder / 'data'))}", f"app_dir = {json.dumps(str(SCRIPTS))}"]
        if self._redis_url:
            lines += ["[redis]", f"url = {json.dumps(self._redis_url)}"]
        lines += [f"[pools.{POOL}]", *(f"{name} = {json.dumps(value)}" for name, value in self._settings.items())]
        config.write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "agentpool.cli.master"]
        if (script := Path(sys.executable).with_name("agentpool-master")).exists():
            command = [str(script)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "run", *([] if self._redis_url else ["--embedded"]), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,  # so that Ctrl-C reaches only the benchmark, which stops it in order
            )

    def _find_server(self) -> str | None:
        return (self._redis_url or running_url(self._folder / "data")) if self._alive() else None

    def _wait_ready(self, count: int) -> None:
        """Wait until the pool is in service, and exactly so many workers are there and ready."""
        pool = self.keys.pool(POOL)
        try:
            wait_for(lambda: self._alive() and self.redis.hget(pool, "status"), "the pool is in service", READY_S)
            wait_for(lambda: self._alive() and self.is_steady(count), f"{count} workers are ready", READY_S)
        except redis.ConnectionError:
            wait_for(lambda: not self._alive(), "the master that stopped its server ends")

    def _alive(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"agentpool-master ended with {self._process.returncode}:\n{self.log_tail()}")
        return True

    def log_tail(self, lines: int = 15) -> str:
        """Return the end of the master's log."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-lines:])

    def _stop(self) -> None:
        if self.redis is not None:
            with contextlib.suppress(redis.RedisError):
                self._known = self.worker_pids()
            self.redis.close()
        for seconds in (TERM_S, HURRY_S):
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return
        self._process.kill()
        self._process.wait()

    def _end_rest(self) -> None:
        """End what a killed master leaves: nothing, when it stopped by itself."""
        for pid, started in self._known.values():
            pidfd = open_process(pid, started)
            if pidfd is not None:
                print(f"worker {pid} had to be killed", file=sys.stderr)
                send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
        if running_url(self._folder / "data"):
            server = EmbeddedServer(self._folder / "data", RedisSettings())
            server.start()
            server.stop()


@contextlib.contextmanager
def scratch_server(appendfsync: Literal["everysec", "no"] = "no") -> Iterator[str]:
    """Run an empty server and give its URL."""
    with _folder() as folder:
        server = EmbeddedServer(folder, RedisSettings(appendfsync=appendfsync))
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="agentpool-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
