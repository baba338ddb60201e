"""A pool's zygote: started, told to fork, watched, replaced.

The zygote is exec'd with `-P`, so nothing of the working folder can stand in for a library while it starts; the app
folder is put on the path afterwards, by the zygote itself. It has a session of its own, so Ctrl-C does not reach it.
"""

import array
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import structlog

from agentpool.errors import ConfigError
from agentpool.master.host import send_signal
from agentpool.master.worker_process import WorkerProcess
from agentpool.protocol import zygote as wire
from agentpool.protocol.records import TypeInfo

__all__ = ["Zygote", "ZygoteGone"]

log = structlog.get_logger("zygote")

PREPARE_TIMEOUT = 60.0
FORK_TIMEOUT = 5.0
END_TIMEOUT = 0.5


class ZygoteGone(Exception):
    """The zygote ended, or did not answer in time."""


class Zygote:
    """One zygote process. `on_exit` is called with a worker's id and exit status."""

    def __init__(self, pool: str, on_exit: Callable[[str, int], None]) -> None:
        self.pool = pool
        self.types: tuple[TypeInfo, ...] = ()
        self.release = ""
        self.alive = False
        self._on_exit = on_exit
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared: asyncio.Future[wire.Ready | wire.Failed] | None = None
        self._forks: dict[str, asyncio.Future[tuple[wire.Forked, int]]] = {}

    async def start(self, prepare: wire.Prepare) -> None:
        """Start it and wait until everything is imported; raises `ConfigError` with the traceback if that fails."""
        try:
            ours, self._process = _exec()
        except OSError as error:
            raise ConfigError(
                f'Pool "{self.pool}": no process can be started: {error.strerror}. Look at the limits of this service '
                "(ulimit -a) and at the memory of its host."
            ) from None
        ours.setblocking(False)
        self._socket, self.alive = ours, True
        log.debug("zygote.importing", pool=self.pool, agents=prepare.agents, pid=self._process.pid)
        loop = asyncio.get_running_loop()
        self._prepared = loop.create_future()
        loop.add_reader(ours, self._readable)
        self._send(prepare)
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT):
                answer = await asyncio.shield(self._prepared)
        except (TimeoutError, ZygoteGone) as error:
            await self.close()
            raise ConfigError(
                f'Pool "{self.pool}": importing {", ".join(prepare.agents)} did not come to an end '
                f"({str(error) or f'it took over {PREPARE_TIMEOUT:g} s'})."
            ) from None
        except asyncio.CancelledError:
            await self.close()
            raise
        if isinstance(answer, wire.Failed):
            await self.close()
            raise ConfigError(f'Pool "{self.pool}": {answer.message}\n{answer.traceback}'.rstrip())
        if answer.warning:
            log.warning("zygote.exec_fallback", pool=self.pool, reason=answer.warning)
        self.types, self.release = answer.types, answer.release

    async def fork(self, order: wire.Fork, on_end: Callable[[WorkerProcess], None]) -> tuple[WorkerProcess, int]:
        """Start the worker of an order; returns it and its start time. Raises `ZygoteGone`."""
        if not self.alive:
            raise ZygoteGone(f"the zygote of pool {self.pool} has ended")
        future: asyncio.Future[tuple[wire.Forked, int]] = asyncio.get_running_loop().create_future()
        self._forks[order.worker_id] = future
        try:
            self._send(order)
            async with asyncio.timeout(FORK_TIMEOUT):
                forked, pidfd = await future
        except (TimeoutError, OSError) as error:
            # It is frozen, or worse: the next order gets a new one.
            await self.close()
            raise ZygoteGone(f"the zygote of pool {self.pool} does not fork: {error!r}") from None
        finally:
            self._forks.pop(order.worker_id, None)
        return WorkerProcess(order.worker_id, forked.pid, pidfd, on_end), forked.start_time

    async def close(self) -> None:
        """Let it end; its workers live on. May be called twice."""
        self._gone("closed")
        process, self._process = self._process, None
        if process:
            await asyncio.to_thread(_end_process, process)

    def _send(self, message: wire.FromMaster) -> None:
        assert self._socket is not None
        self._socket.send(wire.encode(message))

    def _readable(self) -> None:
        """Take every packet that is there; an empty one is the end."""
        while self._socket is not None:
            try:
                data, fds = _receive(self._socket)
            except BlockingIOError:
                return
            except OSError as error:
                self._gone(repr(error))
                return
            if not data:
                self._gone(f"it ended{self._exit_text()}")
                return
            self._take(wire.decode_from_zygote(data), fds)

    def _take(self, message: wire.FromZygote, fds: list[int]) -> None:
        match message:
            case wire.Ready() | wire.Failed():
                if self._prepared and not self._prepared.done():
                    self._prepared.set_result(message)
            case wire.Forked(worker_id=worker_id):
                future = self._forks.get(worker_id)
                if future and not future.done() and fds:
                    future.set_result((message, fds[0]))
                elif future and not future.done():
                    # Nobody could watch it. It finds out when it is given up.
                    future.set_exception(ZygoteGone("this master has no file descriptors left: raise its limit"))
                else:
                    _abandon(fds)
            case wire.Exited(worker_id=worker_id, status=status):
                self._on_exit(worker_id, status)

    def _gone(self, why: str) -> None:
        self.alive = False
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        waiting = [future for future in (self._prepared, *self._forks.values()) if future and not future.done()]
        for future in waiting:
            future.set_exception(ZygoteGone(why))
            future.exception()  # whoever waited may be gone, too

    def _exit_text(self) -> str:
        code = self._process.poll() if self._process else None
        return "" if code is None else f" with status {code}"


def _exec() -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start the program; returns this end of its socket, and its process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agentpool_worker.zygote", "--control-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return ours, process


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return one packet and the file descriptors that came along."""
    data, ancillary, _, _ = sock.recvmsg(wire.PACKET_BYTES_MAX, socket.CMSG_SPACE(4 * array.array("i").itemsize))
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _abandon(fds: list[int]) -> None:
    """End a worker that came too late for its order: nobody would watch it."""
    for pidfd in fds:
        send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """The zygote ends when its socket closes; a deadline and SIGKILL stand behind that."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT)
        return
    process.kill()
    process.wait()
