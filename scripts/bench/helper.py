"""What floors need in a process apart: `python -m bench.helper VERB …`, started by `floors.py`.

A verb prints one JSON document when it has its figures, or when it is ready; one that serves then ends with its
standard input.
"""

import asyncio
import gc
import json
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import redis

__all__: list[str] = []


def _timed(rounds: int, verb: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        verb()
        times.append((time.perf_counter() - began) * 1000)
    return times


def fork(rounds: int) -> None:
    """From `os.fork` to the child's first word, in a process that has imported what a zygote has."""
    import agentpool_worker.preload  # noqa: F401

    gc.collect()
    gc.freeze()
    reading, writing = os.pipe()

    def once() -> None:
        pid = os.fork()
        if pid == 0:
            os.write(writing, b".")
            os._exit(0)
        os.read(reading, 1)
        os.waitpid(pid, 0)

    _say(_timed(rounds, once))


def death(rounds: int) -> None:
    """From SIGKILL of a child to its pidfd telling of it."""
    import agentpool_worker.preload  # noqa: F401

    def once() -> float:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.01)
        pidfd = os.pidfd_open(pid)
        began = time.perf_counter()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        took = time.perf_counter() - began
        os.waitpid(pid, 0)
        os.close(pidfd)
        return took * 1000

    _say([once() for _ in range(rounds)])


def execute(rounds: int) -> None:
    """A new interpreter that does nothing."""
    _say(_timed(rounds, lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)))


def forkserver(rounds: int, url: str) -> None:
    """From `Process.start` of a warm forkserver to the child's first answered PING."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "redis"])
    reading, writing = context.Pipe(duplex=False)

    def once() -> None:
        process = context.Process(target=_ping_once, args=(url, writing))
        process.start()
        reading.recv()
        process.join()

    once()
    _say(_timed(rounds, once))


def _ping_once(url: str, writing: Connection) -> None:
    redis.Redis.from_url(url).ping()
    writing.send(True)


def beat(count: int, url: str) -> None:
    """As many processes, each of which sends a PING once a second."""
    pids = [_fork_beating(url) for _ in range(count)]
    try:
        _serve(pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork_beating(url: str) -> int:
    pid = os.fork()
    if pid == 0:
        _beat(url)
    return pid


def _beat(url: str) -> NoReturn:
    parent = os.getppid()
    try:
        client = redis.Redis.from_url(url)
        time.sleep(random.random())
        while os.getppid() == parent:
            client.ping()
            time.sleep(1)
    finally:
        os._exit(0)


def pong(url: str) -> None:
    """Publish on `pong` what is published on `ping`."""
    asyncio.run(_pong(url))


async def _pong(url: str) -> None:
    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("ping")
        answering = asyncio.create_task(_answer(client, pubsub))
        await asyncio.to_thread(_serve, "ready")
        answering.cancel()


async def _answer(client: Any, pubsub: Any) -> None:
    async for message in pubsub.listen():
        if message["type"] == "message":
            await client.publish("pong", message["data"])


def _say(document: object) -> None:
    print(json.dumps(document), flush=True)


def _serve(document: object) -> None:
    _say(document)
    sys.stdin.read()


VERBS: dict[str, Callable[..., None]] = {
    "fork": fork,
    "death": death,
    "execute": execute,
    "forkserver": forkserver,
    "beat": beat,
    "pong": pong,
}


if __name__ == "__main__":
    VERBS[sys.argv[1]](*(int(word) if word.isdecimal() else word for word in sys.argv[2:]))
