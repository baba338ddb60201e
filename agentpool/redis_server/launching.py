"""Starting a server anew. The lock is held, so nobody else does, and whatever the files say is of the past."""

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentpool.clock import monotonic
from agentpool.config import RedisSettings
from agentpool.errors import ServerError
from agentpool.redis_server.answers import POLL_S, Answer, NoAnswer, Patience, ask
from agentpool.redis_server.binaries import Binary, Choice, Product, find_binary
from agentpool.redis_server.explain import (
    explain_death,
    explain_lost_manifest,
    log_tail,
    set_aside,
    truncation_in,
)
from agentpool.redis_server.folder import Folder, Lock
from agentpool.redis_server.processes import Process, child_process, held, reap
from agentpool.redis_server.record import Record, read_record, restore_record, write_record
from agentpool.redis_server.settings import write_settings
from agentpool.redis_server.sockets import prepare_socket_folder
from agentpool.redis_server.stopping import end_process

__all__ = ["Launched", "launch"]

ALLOCATION = "glibc.malloc.tcache_count=1000:glibc.malloc.mxfast=0"
"""For a server that uses the C library's own allocator: freed memory of small sizes is kept at hand, 1000 pieces of
each, which is 33 MB in the worst case. Scripts make and drop much of it, and take a fifth less time so.
"""


@dataclass(frozen=True)
class Launched:
    """A server that was started and serves; `warnings` are lines that an operator should see."""

    answer: Answer
    binary: Binary
    warnings: list[str]


@dataclass(frozen=True)
class _Start:
    """A start under way: what was run, as which process, where it will listen, and where its part of the log begins."""

    folder: Folder
    settings: RedisSettings
    binary: Binary
    process: Process
    socket_path: Path
    log_start: int

    def log(self) -> str:
        return self.folder.log_since(self.log_start)


def launch(folder: Folder, settings: RedisSettings, lock: Lock, socket_path: Path, patience: Patience) -> Launched:
    """Start a server on a folder and wait until it serves. Raises ServerError."""
    before = read_record(folder)
    binary = _choose_binary(folder, settings.binary, before.writer if before else None)
    if folder.has_lost_its_manifest():
        raise ServerError(explain_lost_manifest(folder))
    prepare_socket_folder(socket_path, folder)
    write_settings(folder, settings, socket_path, binary.version)
    log_start = folder.log_bytes()
    process = _spawn(folder, binary, lock)
    # At once, so that there is hardly a moment in which a server lives that no file knows.
    write_record(folder, Record.of(binary, process, folder, socket_path))
    start = _Start(folder, settings, binary, process, socket_path, log_start)
    try:
        answer = _await_answer(start, patience)
    except ServerError:
        if not process.is_alive():
            restore_record(folder, before)
        raise
    return Launched(answer, binary, _warnings(start))


# ---- The program


def _choose_binary(folder: Folder, choice: Choice, recorded: Product | None) -> Binary:
    """The program for the data of this folder. Raises ServerError when it may not read what another one wrote."""
    # Where the data was set aside, the record protects nothing, and a new one begins with whatever is wanted most.
    writer = recorded if folder.has_data() else None
    binary = find_binary(choice, writer)
    if writer is None or binary.reads(writer):
        return binary
    raise ServerError(
        f"The data in {folder.path} was written by {writer}; {binary} ({binary.path}) may not read it. "
        f"{_who_reads(writer)}, or set the data aside and start empty: "
        + set_aside(folder, str(writer).replace(" ", "-"))
    )


def _who_reads(writer: Product) -> str:
    # "auto" last: it may find what the others pass over, the second of two system servers.
    choices: tuple[Choice, ...] = ("system", "bundled", "auto")
    for choice in choices:
        with suppress(ServerError):
            if find_binary(choice, writer).reads(writer):
                return f'Set binary = "{choice}" under [redis] (AGENTPOOL_REDIS__BINARY={choice})'
    return f"Install {writer} or newer"


def _spawn(folder: Folder, binary: Binary, lock: Lock) -> Process:
    """Start the program in a session of its own, away from our terminal, with the lock in its hands."""
    # What it complains of before it opens its log goes there as well.
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    config = os.open(folder.config, os.O_RDONLY | os.O_CLOEXEC)
    try:
        child = subprocess.Popen(
            # Its settings on standard input: a path given here would be read as a pattern (`*`, `?`, `[`), and
            # where that matches nothing the server runs without any settings, on TCP and for everybody.
            [binary.path, "-"],
            stdin=config,
            stdout=log,
            stderr=log,
            pass_fds=(lock.fd,),
            start_new_session=True,
            cwd=folder.path,
            env=_environment(),
        )
    finally:
        os.close(config)
        os.close(log)
    process = child_process(child.pid)
    # It outlives us on purpose and is reaped by `reap`; Popen would warn about the first and race the second.
    child.returncode = 0
    return process


def _environment() -> dict[str, str]:
    """The server's environment variables: ours, with what it needs."""
    return {
        **os.environ,
        # What the caller says himself comes last, and counts.
        "GLIBC_TUNABLES": ":".join(filter(None, [ALLOCATION, os.environ.get("GLIBC_TUNABLES")])),
        # Some releases refuse to start where the caller's locale is not installed.
        "LC_ALL": "C",
    }


# ---- Its first answer


def _await_answer(start: _Start, patience: Patience) -> Answer:
    began = monotonic()
    loading = False
    while True:
        if not start.process.is_alive():
            raise _dead(start)
        with suppress(NoAnswer):
            answer = ask(start.socket_path, start.folder.read_password())
            if answer.process == start.process and not answer.loading:
                return answer
            loading = answer.loading
        if patience.is_over(began, loading):
            raise _still_loading(start) if loading else _end_silent(start)
        time.sleep(POLL_S)


def _dead(start: _Start) -> ServerError:
    status, log = reap(start.process), start.log()
    return ServerError(explain_death(log, start.folder, start.binary, start.settings.port, status) + log_tail(log))


def _still_loading(start: _Start) -> ServerError:
    # Killing it would only make the next start begin anew.
    return ServerError(
        f"The Redis server (pid {start.process.pid}) is still loading its data from {start.folder.data}. It was "
        "left running: start again to go on waiting for it."
    )


def _end_silent(start: _Start) -> ServerError:
    """End a server that does not answer; the error to raise about it."""
    with held(start.process) as pidfd:
        if pidfd is not None:
            end_process(start.process, pidfd, start.folder, start.socket_path, 0.0)
    reap(start.process)
    return ServerError(
        f"The Redis server (pid {start.process.pid}) did not answer on {start.socket_path} in time and was ended. Look "
        f"at {start.folder.log} and start again." + log_tail(start.log())
    )


def _warnings(start: _Start) -> list[str]:
    if not truncation_in(start.log()):
        return []
    return [
        f"The end of the data in {start.folder.data} was cut off, as after a crash or on a full disk. It was "
        f"loaded up to there; the last writes are lost. Details: {start.folder.log}"
    ]
