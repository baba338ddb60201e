"""The server of one data directory, as the rest of the product sees it."""

import shlex
from pathlib import Path

from agentpool.config import RedisSettings
from agentpool.errors import ServerError
from agentpool.redis_server.adopting import find_running, settle
from agentpool.redis_server.answers import Answer, Patience
from agentpool.redis_server.binaries import Binary
from agentpool.redis_server.explain import explaining
from agentpool.redis_server.folder import Folder, Lock
from agentpool.redis_server.launching import launch
from agentpool.redis_server.processes import Process, held, reap
from agentpool.redis_server.sockets import socket_path_for, socket_url
from agentpool.redis_server.stopping import end_process

__all__ = ["EmbeddedServer"]


class EmbeddedServer:
    """The Redis server of one data directory.

    After `start()`: `url`, `socket_path`, `pid`, `adopted`, `binary`, `cli_hint`, `tcp_password_file` and `warnings`,
    lines that an operator should see. Not for use by several threads at a time.
    """

    def __init__(self, data_dir: Path | str, settings: RedisSettings) -> None:
        self._folder = Folder.at(data_dir)
        self.data_dir = self._folder.path
        self.socket_path = socket_path_for(self.data_dir)
        self.adopted = False
        self.binary: Binary | None = None
        self.warnings: list[str] = []
        self._settings = settings
        self._process: Process | None = None
        self._port = 0

    @property
    def pid(self) -> int | None:
        """Pid of the server; None before `start()` and after `stop()`."""
        return self._process.pid if self._process else None

    @property
    def url(self) -> str:
        """For redis-py's `from_url`: the socket, and the password when TCP is on."""
        return socket_url(self.socket_path, self._folder.read_password())

    @property
    def tcp_password_file(self) -> Path | None:
        """The file with the password, when the TCP port is on."""
        return self._folder.password if self._port else None

    @property
    def cli_hint(self) -> str:
        """The command that an operator types to look inside."""
        command = f"redis-cli -s {shlex.quote(str(self.socket_path))}"
        if self._port:
            return f'REDISCLI_AUTH="$(cat {shlex.quote(str(self._folder.password))})" {command}'
        return command

    def is_alive(self) -> bool:
        """Whether the process lives; it may be frozen or loading all the same. Reaps it if it is a dead child."""
        if self._process is None:
            return False
        reap(self._process)
        return self._process.is_alive()

    def start(self, timeout: float = 30.0, load_timeout: float = 600.0) -> None:
        """Start the server, or adopt the one that runs on this data directory already.

        `timeout` (s) is for its first answer, `load_timeout` (s) for loading its data. Raises ServerError. Does
        nothing while the server lives; may be called again when it ended, was stopped, or did not start.
        """
        if self.is_alive():
            return
        self.warnings = []
        patience = Patience(timeout, load_timeout)
        with explaining(self.data_dir):
            self._folder.prepare()
            lock = Lock(self._folder.lock)
            try:
                if found := find_running(self._folder, lock, patience):
                    self._adopt(*found)
                else:
                    self._launch(lock, patience)
            finally:
                lock.close()

    def stop(self, timeout: float = 10.0) -> None:
        """End the server, also an adopted one; safe to call twice.

        Ask, SIGTERM, SIGKILL: `timeout` seconds for the first, which brings all data to the disk, and five for each
        of the others. Raises ServerError when it survives all three.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with held(process) as pidfd:
            if pidfd is not None and not end_process(process, pidfd, self._folder, self.socket_path, timeout):
                self._process = process
                raise ServerError(
                    f"The Redis server (pid {process.pid}) survived SIGKILL; it hangs in the kernel, most likely on "
                    f"the disk of {self.data_dir}. Check that disk."
                )
        reap(process)

    def _adopt(self, answer: Answer, path: Path) -> None:
        # Taken first: what follows may fail, and `stop()` ends this server all the same.
        self.socket_path = path
        self._take(answer, answer.binary)
        self.adopted = True
        self.warnings += settle(self._folder, self._settings, answer, path)

    def _launch(self, lock: Lock, patience: Patience) -> None:
        self.adopted = False
        self.socket_path = socket_path_for(self.data_dir)
        launched = launch(self._folder, self._settings, lock, self.socket_path, patience)
        self._take(launched.answer, launched.binary)
        self.warnings += launched.warnings

    def _take(self, answer: Answer, binary: Binary) -> None:
        self._process, self.binary, self._port = answer.process, binary, answer.port
