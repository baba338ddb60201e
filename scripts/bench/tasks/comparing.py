"""agentpool and its peers in turns on one Redis server: each round, every system is started, measured and stopped."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import redis

from agentpool import __version__
from agentpool.errors import AgentPoolError
from bench.figures import median, quantile
from bench.running import SCRIPTS, BenchError, clean_environment, scratch_server
from bench.tasks.environments import PEERS, prepare
from bench.tasks.own import Own, own_master
from bench.tasks.sizes import Sizes

__all__ = ["OWN", "Measured", "compare"]

OWN = "agentpool"
FIXED_S, TASKS_PER_S = 120.0, 50.0
"""A peer that takes longer than to start, and to do its tasks at this rate, is given up."""


class Measured(msgspec.Struct):
    """What one system came to, a value for each round; `problem` when a round failed, or it is not there."""

    title: str
    settings: str = ""
    versions: dict[str, str] = {}
    bulk: list[float] = []
    single: list[float] = []
    idle_p50: list[float] = []
    idle_p99: list[float] = []
    problem: str = ""

    def add(self, answer: dict[str, Any]) -> None:
        """Take the figures of one more round."""
        self.versions = answer.get("versions", self.versions)
        self.bulk.append(answer["bulk"])
        self.single.append(answer["single"])
        self.idle_p50.append(median(answer["idle"]))
        self.idle_p99.append(quantile(answer["idle"], 0.99))


def compare(names: Sequence[str], sizes: Sizes) -> dict[str, Measured]:
    """Measure these systems, by name, in turns on one server."""
    results: dict[str, Measured] = {}
    turns: dict[str, Callable[[str], dict[str, Any]]] = {}
    for name in names:
        if name == OWN:
            results[name] = Measured(OWN, "2 × 10 coroutines, default settings, 8 tenants", {OWN: __version__})
            turns[name] = partial(_own_round, sizes)
            continue
        python, problem = prepare(name)
        results[name] = Measured(PEERS[name].title, PEERS[name].settings, problem=problem)
        if python:
            turns[name] = partial(_peer_round, sizes, name, python)
    with scratch_server(appendfsync="everysec") as url, redis.Redis.from_url(url) as server:
        for number in range(sizes.rounds):
            for name, turn in turns.items():
                server.flushall(asynchronous=False)
                try:
                    results[name].add(turn(url))
                except (AgentPoolError, BenchError) as error:
                    results[name].problem = f"failed in round {number + 1}: {error}"
                    print(f"{name} {results[name].problem}", file=sys.stderr)
                else:
                    rate = results[name].bulk[-1]
                    print(f"{name}, round {number + 1}: {rate:,.0f} /s in bulk", file=sys.stderr)
    return results


def _own_round(sizes: Sizes, url: str) -> dict[str, Any]:
    with own_master(url) as master:
        return Own(master.url).measure(sizes.plan())


def _peer_round(sizes: Sizes, name: str, python: Path, url: str) -> dict[str, Any]:
    plan = sizes.peer_plan()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        out, complaints, status = _drive(
            [str(python), "-m", "bench.tasks.drive", name, json.dumps(dataclasses.asdict(plan))],
            {"BENCH_REDIS_URL": url, "PYTHONPATH": str(SCRIPTS), "TMPDIR": folder},
            timeout=FIXED_S + (plan.bulk + plan.single + plan.idle) / TASKS_PER_S,
        )
    if status:
        print(complaints[-3000:], file=sys.stderr)
        raise BenchError((complaints.strip().splitlines() or ["without a word"])[-1][:100])
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def _drive(command: list[str], env: dict[str, str], timeout: float) -> tuple[str, str, int]:
    """Run a peer's driver to its end, or give it up; returns what it said, what it complained of, and its status."""
    reading, writing = os.pipe()  # whose other end tells the driver that this process has ended, however
    process = subprocess.Popen(
        command,
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=SCRIPTS,
        env=clean_environment() | env,
        text=True,
        start_new_session=True,
    )
    os.close(reading)
    try:
        return *process.communicate(timeout=timeout), process.returncode
    except subprocess.TimeoutExpired:
        raise BenchError("too slow, or stuck") from None
    finally:
        _end_group(process)
        os.close(writing)


def _end_group(process: "subprocess.Popen[str]") -> None:
    """End the peer's driver and what it started: all of them are of its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
