"""The least that this machine needs for parts of the work, measured in the same run as the figures themselves."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import redis.asyncio

from bench.processes import cpu_seconds
from bench.running import SCRIPTS, BenchError, clean_environment

__all__ = ["bare_beats_percent", "helper_times", "ping_pong_times", "round_trip_times"]

HELPER_TIMEOUT_S = 60.0


def helper_times(verb: str, *words: object) -> list[float]:
    """Return the times in ms that a verb of `helper.py` measures."""
    command = _command(verb, *words)
    done = subprocess.run(command, capture_output=True, timeout=HELPER_TIMEOUT_S, check=False, **_OPTIONS)
    if done.returncode:
        raise BenchError(f"helper {verb} failed:\n{done.stderr.decode()[-2000:]}")
    times: list[float] = json.loads(done.stdout)
    return times


def bare_beats_percent(url: str, count: int, seconds: float) -> float:
    """Return the CPU use, in percent of a core, of processes that only send a PING each second through redis-py."""
    with _helper("beat", count, url) as pids:
        time.sleep(min(2.0, seconds))  # all connected, and at their own moments of the second
        before, began = cpu_seconds(pids), time.monotonic()
        time.sleep(seconds)
        return 100 * (cpu_seconds(pids) - before) / (time.monotonic() - began)


async def round_trip_times(url: str, rounds: int) -> list[float]:
    """Return the times in ms of `EVALSHA` of a script that does nothing, through redis-py's asyncio client."""
    async with redis.asyncio.Redis.from_url(url) as client:
        sha = await client.script_load("return 1")
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            await client.evalsha(sha, 0)
            times.append((time.perf_counter() - began) * 1000)
        return times


async def ping_pong_times(url: str, rounds: int) -> list[float]:
    """Return the times in ms of a publication to another process and its publication back."""
    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("pong")
        await pubsub.get_message(timeout=5)
        with _helper("pong", url):
            times = []
            for _ in range(rounds):
                began = time.perf_counter()
                await client.publish("ping", "")
                while await pubsub.get_message(timeout=5) is None:
                    pass
                times.append((time.perf_counter() - began) * 1000)
            return times


_OPTIONS: dict[str, Any] = {"cwd": SCRIPTS, "env": clean_environment()}


def _command(verb: str, *words: object) -> list[str]:
    return [sys.executable, "-m", "bench.helper", verb, *map(str, words)]


@contextlib.contextmanager
def _helper(verb: str, *words: object) -> Iterator[Any]:
    """Run a helper that serves; yields what it says once it is ready. It ends with its standard input."""
    with subprocess.Popen(_command(verb, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_OPTIONS) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
