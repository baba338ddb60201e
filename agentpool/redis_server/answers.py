"""Asking a server who it is, and how long to wait for what it says."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentpool.clock import monotonic
from agentpool.errors import ServerError
from agentpool.redis_server.binaries import Binary, Kind, version_from
from agentpool.redis_server.folder import Folder, user_name
from agentpool.redis_server.processes import Process
from agentpool.redis_server.record import recorded_place
from agentpool.redis_server.sockets import check_private, peer_pid, socket_url

__all__ = ["ASK_TIMEOUT_S", "POLL_S", "Answer", "NoAnswer", "Patience", "ask", "client", "running_url"]

ASK_TIMEOUT_S = 1.0
"""One question to a server; a frozen one answers nothing."""
POLL_S = 0.005


class NoAnswer(Exception):
    """Nobody answered on the socket, or not usefully; the text says why."""


@dataclass(frozen=True)
class Answer:
    """What a server says about itself, and, for its process, what the kernel says."""

    process: Process
    binary: Binary
    loading: bool
    loaded_percent: float
    port: int
    aof_status: str


@dataclass(frozen=True)
class Patience:
    """How long a server may take: to answer at all, and, once it says that it loads its data, for that."""

    answer_s: float
    load_s: float

    def is_over(self, began: float, loading: bool) -> bool:
        return monotonic() - began > (self.load_s if loading else self.answer_s)


def client(path: Path, password: str | None, timeout: float) -> redis.Redis:
    """A connection without retries: a lost answer must be seen, and SHUTDOWN must not be sent twice."""
    return redis.Redis(
        unix_socket_path=str(path), password=password, socket_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


def ask(path: Path, password: str | None) -> Answer:
    """Ask the server on a socket who it is. INFO rather than PING: it is answered while data is loading, too.

    Raises NoAnswer; ServerError when it runs in another container.
    """
    try:
        pid = peer_pid(path, ASK_TIMEOUT_S)
        with client(path, password, ASK_TIMEOUT_S) as connection:
            info = cast("dict[str, Any]", connection.info())
    except (OSError, redis.RedisError) as error:
        raise NoAnswer(str(error)) from error
    if pid == 0:
        raise ServerError(
            f"The server on {path} runs in another container. Stop it there, or use another data_dir here."
        )
    process = Process.of(pid)
    if process is None:
        raise NoAnswer(f"process {pid} has just ended")
    return Answer(
        process=process,
        binary=_binary_from(info),
        loading=bool(info.get("loading")),
        loaded_percent=float(info.get("loading_loaded_perc", 0)),
        port=int(info.get("tcp_port", 0)),
        aof_status=str(info.get("aof_last_write_status", "ok")),
    )


def _binary_from(info: dict[str, Any]) -> Binary:
    kind: Kind = "valkey" if "valkey_version" in info else "redis"
    return Binary(Path(info.get("executable", "")), kind, version_from(str(info[f"{kind}_version"])))


def running_url(data_dir: Path | str) -> str | None:
    """URL of the server that runs on a data directory, for redis-py's `from_url`; None if none listens.

    Raises ServerError when the folder may not be looked into.
    """
    folder = Folder.at(data_dir)
    try:
        _, path = recorded_place(folder)
        if path.parent != folder.path and path.parent.exists():
            check_private(path.parent)
        peer_pid(path, ASK_TIMEOUT_S)
        return socket_url(path, folder.read_password())
    except PermissionError as error:
        raise ServerError(
            f"{error.filename or folder.path} may not be read by user {user_name(os.geteuid())}. Run this as the user "
            "that runs agentpool-master."
        ) from error
    except OSError:
        return None
