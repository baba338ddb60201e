"""What a real server loses of what it acknowledged, by `appendfsync`: killed, and with the failure of its machine.

Each round starts a server, submits tasks one after the other as fast as it takes them, kills it with SIGKILL at a
random moment, starts it again and counts the acknowledged tasks that are gone. A kill leaves what was written with
the kernel, so the failure of a machine is shown on a copy of the file: it is cut off behind the last write that the
server had confirmed as synced (WAITAOF, asked for all the time by a second connection; with `always` each answer
confirms). What the kernel or the disk had written by themselves is not counted, so this is the most that can be lost.
Without fsync nothing is confirmed, and it is everything.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import redis
from bench.figures import median

from agentpool.config import RedisSettings
from agentpool.errors import RedisUnavailable
from agentpool.protocol.codec import new_id
from agentpool.protocol.keys import Keys
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.tasks import TaskEnvelope, TaskHeader
from agentpool.redis_server import find_binary
from agentpool.store import Store

POOL = "measured"
SECONDS = (0.5, 1.5)
SETTINGS = {"min_workers": 0, "max_workers": 1, "max_input_bytes": 100_000, "max_queued": 10_000_000}
MODES: dict[str, tuple[str, ...]] = {
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
    "everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "no": ("--appendonly", "yes", "--appendfsync", "no"),
    "no append-only file": ("--appendonly", "no"),
}


class Server:
    """A bare server in a folder, with the settings of one mode."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.mode = folder, mode
        self.url = f"unix://{folder}/redis.sock"

    def start(self) -> None:
        binary = find_binary(RedisSettings().binary)
        self.process = subprocess.Popen(
            [binary.path, "--dir", self.folder, "--unixsocket", self.folder / "redis.sock", "--port", "0", "--save", "",
             *MODES[self.mode]],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        self.client.close()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def size(self) -> int:
        file = self.log_file()
        return file.stat().st_size if file else 0

    def log_file(self) -> Path | None:
        """The part of the append-only file that grows."""
        return next(self.folder.glob("appendonlydir/*.incr.aof"), None)


class Submitting:
    """Submits tasks until the server is gone; knows what was acknowledged, and when."""

    def __init__(self, server: Server) -> None:
        self.keys = Keys()
        self.acknowledged: dict[str, float] = {}
        self.size = 0
        self._server = server

    def run(self) -> None:
        asyncio.run(self._submit())

    async def _submit(self) -> None:
        store = Store.open(self._server.url, command_timeout=0.5)
        lead = await store.locks.lead(POOL, "m", lease_ms=60_000, gap_ms=2000, hold_ms=0)
        await store.pools.apply(POOL, lead.token, [TypeInfo(name="Echo", module="x")], SETTINGS)
        header, envelope = TaskHeader("", "", "Echo", "default"), TaskEnvelope(msgspec.Raw(b'"some input"'))
        try:
            while True:
                id = f"{POOL}/{new_id()}"
                await store.tasks.submit(id, header, envelope)
                self.acknowledged[id] = time.monotonic()
                if self._server.mode == "always":  # its answer is the confirmation
                    self.size = self._server.size()
        except RedisUnavailable:
            await store.close()


class Syncing:
    """Asks all the time up to where the file is synced; `size` is what it had at the last confirmed moment."""

    def __init__(self, server: Server) -> None:
        self.client = redis.Redis.from_url(server.url)
        self.size = 0
        self._server = server

    def run(self) -> None:
        try:
            while True:
                self.client.set("marker", 1)
                size = self._server.size()
                if self.client.execute_command("WAITAOF", 1, 0, 5000)[0]:
                    self.size = size
        except redis.RedisError:
            return


def one_round(mode: str, dice: random.Random) -> tuple[int, int, int, float]:
    """Return what was acknowledged, what a kill lost, what a machine's failure would have lost, and its age in s."""
    with tempfile.TemporaryDirectory(prefix="durability-") as name:
        server = Server(Path(name), mode)
        server.start()
        submitting, syncing = Submitting(server), Syncing(server)
        threads = [threading.Thread(target=submitting.run)]
        if mode != "no append-only file":
            threads.append(threading.Thread(target=syncing.run))
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(*SECONDS))
        server.kill()
        killed = time.monotonic()
        for thread in threads:
            thread.join()
        copy = Path(name) / "machine"
        copy.mkdir()
        if (file := server.log_file()) is not None:
            shutil.copytree(Path(name) / "appendonlydir", copy / "appendonlydir")
            os.truncate(copy / "appendonlydir" / file.name, max(syncing.size, submitting.size))
        by_kill = _lost(server, submitting)
        by_machine = _lost(Server(copy, mode), submitting)
        oldest = min((submitting.acknowledged[id] for id in by_machine), default=killed)
        return len(submitting.acknowledged), len(by_kill), len(by_machine), killed - oldest


def _lost(server: Server, submitting: Submitting) -> list[str]:
    server.start()
    ids = list(submitting.acknowledged)
    with server.client.pipeline(transaction=False) as pipe:
        for id in ids:
            pipe.exists(submitting.keys.task(id))
        found = pipe.execute()
    server.kill()
    return [id for id, is_there in zip(ids, found, strict=True) if not is_there]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    binary = find_binary(RedisSettings().binary)
    print(f"{binary}, {options.rounds} rounds each, {time.strftime('%Y-%m-%d')}\n")
    print(
        "| `appendfsync` | acknowledged | lost by kill -9 | lost with its machine, at most (median) | oldest of these |"
    )
    print("|---|---|---|---|---|")
    for mode in MODES:
        rounds = [one_round(mode, dice) for _ in range(options.rounds)]
        acknowledged, killed = sum(row[0] for row in rounds), sum(row[1] for row in rounds)
        machine, typical = sum(row[2] for row in rounds), median([float(row[2]) for row in rounds])
        oldest = max(row[3] for row in rounds)
        age = f"{oldest:.2f} s" if machine else "—"
        print(f"| {mode} | {acknowledged:,} | {killed:,} | {machine:,} ({typical:,.0f}) | {age} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
