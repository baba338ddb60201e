"""Adopting the server that runs on a data directory already."""

import shlex
import time
from pathlib import Path

import redis

from agentpool.clock import monotonic
from agentpool.config import RedisSettings
from agentpool.errors import ServerError
from agentpool.redis_server.answers import ASK_TIMEOUT_S, POLL_S, Answer, NoAnswer, Patience, ask, client
from agentpool.redis_server.folder import Folder, Lock
from agentpool.redis_server.processes import Process
from agentpool.redis_server.record import Record, read_record, recorded_place, write_record

__all__ = ["find_running", "settle"]


def find_running(folder: Folder, lock: Lock, patience: Patience) -> tuple[Answer, Path] | None:
    """What runs on this folder, ready to serve, and its socket; None, with the lock held, when nothing does.

    Raises ServerError when something runs that does not answer in time.
    """
    began = monotonic()
    while True:
        recorded, path = recorded_place(folder)
        silence, loading = "", False
        try:
            answer = ask(path, folder.read_password())
        except NoAnswer as error:
            silence = str(error)
        else:
            if not answer.loading:
                return answer, path
            silence, loading = f"still loading, {answer.loaded_percent:.0f} % done", True
        alive = recorded is not None and recorded.is_alive()
        # The record counts as well, in case someone deleted the lock file below a living server.
        if not loading and not alive and lock.acquire():
            return None
        if patience.is_over(began, loading):
            raise _unusable(folder, recorded if alive else None, path, silence)
        time.sleep(POLL_S)


def settle(folder: Folder, settings: RedisSettings, answer: Answer, path: Path) -> list[str]:
    """Record an adopted server and give it the settings that it can take; returns warnings about the others."""
    current = Record.of(answer.binary, answer.process, folder, path)
    if read_record(folder) != current:
        write_record(folder, current)
    warnings = []
    if answer.port != settings.port:
        warnings.append(
            f"The running server has TCP port {answer.port}, the settings say {settings.port} (0: off). "
            "Stop the service and start it again to change it."
        )
    if answer.aof_status != "ok":
        warnings.append(f"The running server cannot write its data ({folder.log}). Check the disk.")
    try:
        with client(path, folder.read_password(), ASK_TIMEOUT_S) as connection:
            connection.config_set("appendfsync", settings.appendfsync)
    except redis.RedisError as error:
        warnings.append(f"The running server did not take appendfsync from the settings: {error}.")
    return warnings


def _unusable(folder: Folder, process: Process | None, path: Path, silence: str) -> ServerError:
    if process is None:
        return ServerError(
            f"Another process holds {folder.lock}, but no server answers on {path} ({silence}). Find it "
            f"with: fuser -v {shlex.quote(str(folder.lock))} - end it, and start again."
        )
    return ServerError(
        f"The Redis server of {folder.path} (pid {process.pid}) is alive but does not serve on {path} "
        f"({silence}). Wait if it is loading or stopped; else end it with: kill {process.pid} - it saves its "
        "data - and start again."
    )
