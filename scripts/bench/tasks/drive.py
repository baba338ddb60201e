"""Run one peer in its own environment: `python -m bench.tasks.drive NAME PLAN`, with the server in BENCH_REDIS_URL.

Prints one line of JSON. The workers are children of this process and in its group: whoever started this ends all of
them with the group, and should that one die without a word, the end of standard input does it.
"""

import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

from bench.tasks.measuring import Plan

__all__: list[str] = []

TERM_S = 5.0


def drive(name: str, plan: Plan) -> dict[str, Any]:
    """Start the peer's workers, measure, and stop them."""
    peer = importlib.import_module(f"bench.tasks.peers.{name}")
    versions = {package: importlib.metadata.version(package) for package in peer.PACKAGES}
    with tempfile.TemporaryFile() as log:
        workers = [_start(command, log) for command in peer.worker_commands()]
        try:
            return {"versions": versions, **peer.Peer().measure(plan)}
        except BaseException:
            log.seek(0)
            print(log.read()[-3000:].decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                _end(worker)


def _start(command: list[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    program = os.path.join(os.path.dirname(sys.executable), command[0])
    return subprocess.Popen([program, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _end(worker: "subprocess.Popen[bytes]") -> None:
    try:
        worker.wait(TERM_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer = json.dumps(drive(sys.argv[1], Plan(**json.loads(sys.argv[2]))))
    print(answer, flush=True)
    os._exit(0)  # whatever threads the peer still has
