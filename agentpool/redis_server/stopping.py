"""Stopping a server: ask, SIGTERM, SIGKILL."""

import signal
from collections.abc import Callable
from pathlib import Path

import redis

from agentpool.clock import monotonic
from agentpool.redis_server.answers import client
from agentpool.redis_server.folder import Folder
from agentpool.redis_server.processes import Process, send_signal, wait_for_exit
from agentpool.redis_server.sockets import peer_pid

__all__ = ["end_process"]

SIGTERM_WAIT_S = 5.0
SIGKILL_WAIT_S = 5.0


def end_process(process: Process, pidfd: int, folder: Folder, socket_path: Path, timeout: float) -> bool:
    """Climb the ladder until the process has ended; False if it survives the last rung."""
    rungs: list[tuple[Callable[[], bool], float]] = [
        (lambda: _request_shutdown(process, folder, socket_path, timeout), timeout),
        (lambda: _signal(pidfd, signal.SIGTERM), SIGTERM_WAIT_S),
        (lambda: _signal(pidfd, signal.SIGKILL), SIGKILL_WAIT_S),
    ]
    for act, seconds in rungs:
        deadline = monotonic() + seconds
        # What was not taken is not waited for.
        if act() and wait_for_exit(pidfd, deadline - monotonic()):
            return True
    return False


def _signal(pidfd: int, number: signal.Signals) -> bool:
    send_signal(pidfd, number)
    return True


def _request_shutdown(process: Process, folder: Folder, socket_path: Path, timeout: float) -> bool:
    """Send SHUTDOWN, which writes and syncs the append-only file; False if it was not taken.

    Sent only if that very process listens on the socket.
    """
    try:
        if timeout <= 0 or peer_pid(socket_path, timeout) != process.pid:
            return False
        with client(socket_path, folder.read_password(), timeout) as connection:
            connection.execute_command("SHUTDOWN")
    except redis.AuthenticationError:
        return False
    except redis.ConnectionError:
        return True  # the server answers by closing the connection
    except (OSError, redis.RedisError):
        return False
    return True
