"""The process that workers are forked from: `python -m agentpool_worker.zygote --control-fd N`.

Importing what a worker needs takes half a second and 40 MB; a fork of a process that has done it takes milliseconds
and shares the memory. So one process per pool imports everything and then only waits: for orders on its control
socket (a Unix `SOCK_SEQPACKET` pair), and for its children to end. Forking is safe only from a process without other
threads, so it holds no event loop and no Redis connection; where a preloaded module left threads behind, workers are
exec'd instead. The master's end of file ends the zygote at once; its workers live on.
"""

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping

import msgspec
import structlog

from agentpool import logs
from agentpool.agent import AgentType
from agentpool.errors import ConfigError
from agentpool.hosting.loading import load_types, make_importable
from agentpool.protocol.zygote import (
    PACKET_BYTES_MAX,
    Exit,
    Exited,
    Failed,
    Fork,
    Forked,
    FromMaster,
    FromZygote,
    Prepare,
    Ready,
    WorkerSettings,
    decode_from_master,
    encode,
)
from agentpool.version import __version__
from agentpool_worker.exec_worker import exec_worker
from agentpool_worker.preload import warm
from agentpool_worker.process import become_worker, close_quietly, leave, start_time_of, thread_count, zygote_title
from agentpool_worker.worker import run_worker

__all__ = ["Zygote", "main"]

log = structlog.get_logger("zygote")

TRACEBACK_CHARACTERS_MAX = 50_000
"""A packet must fit the kernel's socket buffer."""


class Zygote:
    """Prepares once, then forks on order and reports who ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._prepared: Prepare
        self._types: Mapping[str, AgentType] = {}
        self._exec = False
        self._children: dict[int, str] = {}
        self._woken, self._wakeup = -1, -1

    def run(self) -> int:
        """Serve until the master is gone; returns the exit status."""
        first = self._receive()
        if not isinstance(first, Prepare):
            return 0
        # The master may be gone whenever it is told something: then there is nothing left to do.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not self._prepare(first):
                return 1
            self._catch_signals()
            self._serve()
        return 0

    # -- preparing ----------------------------------------------------------------------------------------------

    def _prepare(self, message: Prepare) -> bool:
        self._prepared, settings = message, message.worker
        logs.configure(settings.log_level, settings.log_format, pool=settings.pool)
        zygote_title(settings.pool, settings.install)
        try:
            make_importable(message.app_dir)
            self._types = load_types(message.agents)
        except ConfigError as error:
            self._send(Failed(message=str(error)))
            return False
        except BaseException as error:  # noqa: BLE001 (a module may raise anything, SystemExit included)
            text = f"{type(error).__name__}: {error}"
            self._send(Failed(message=text[:2000], traceback=traceback.format_exc()[-TRACEBACK_CHARACTERS_MAX:]))
            return False
        warm(settings)
        warning = self._check_threads()
        # What is alive now is never freed: left out of collections, its pages stay shared with the workers.
        gc.collect()
        gc.freeze()
        self._send(
            Ready(types=tuple(loaded.info() for loaded in self._types.values()), warning=warning, release=__version__)
        )
        return True

    def _check_threads(self) -> str:
        count = thread_count()
        self._exec = count > 1
        if not self._exec:
            return ""
        names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        known = ", ".join(names) or "not started by Python"
        return (
            f"importing the agents left {count - 1} thread(s) running ({known}), so forking is unsafe: workers are "
            "started as new interpreters, which takes longer and more memory. Start threads in start() instead."
        )

    # -- serving ------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._woken, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the wake-up descriptor is written to
        signal.signal(signal.SIGTERM, lambda *_: leave(0))

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        self._reap()
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready:
                message = self._receive()
                if message is None:
                    return
                if isinstance(message, Fork):
                    self._start_worker(message)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker_id = self._children.pop(pid, None)
            if worker_id is not None:
                self._send(Exited(worker_id=worker_id, pid=pid, status=status))

    def _start_worker(self, message: Fork) -> None:
        settings = message.worker or self._prepared.worker
        try:
            pid = exec_worker(self._prepared, message, settings) if self._exec else self._fork(message, settings)
        except OSError as error:
            # No process, no memory: the master hears of it as of a failed boot.
            log.error("worker.boot_failed", process_id=message.worker_id, error=str(error))
            self._send(Exited(worker_id=message.worker_id, pid=0, status=Exit.BOOT_FAILED << 8))
            return
        self._children[pid] = message.worker_id
        # The child is not reaped before the next turn, so the pid cannot be another's yet.
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            # Nobody could watch it.
            log.error("worker.boot_failed", process_id=message.worker_id, error=str(error))
            os.kill(pid, signal.SIGKILL)
            return
        try:
            self._send(Forked(worker_id=message.worker_id, pid=pid, start_time=start_time_of(pid)), pidfd)
        finally:
            os.close(pidfd)

    def _fork(self, message: Fork, settings: WorkerSettings) -> int:
        pid = os.fork()
        if pid == 0:
            self._become_worker(message, settings)
        return pid

    def _become_worker(self, message: Fork, settings: WorkerSettings) -> None:
        """Be the worker until its end; never returns into the zygote's loop."""
        status: int = Exit.BOOT_FAILED
        try:
            become_worker()
            self._control.close()
            close_quietly(self._woken)
            close_quietly(self._wakeup)
            gc.enable()
            status = run_worker(settings, message, self._types)
        except BaseException as error:
            log.exception("worker.boot_failed", process_id=message.worker_id, error=str(error))
        finally:
            leave(status)

    # -- the socket ---------------------------------------------------------------------------------------------

    def _receive(self) -> FromMaster | None:
        """Return the next message, or None when the master is gone."""
        try:
            packet = self._control.recv(PACKET_BYTES_MAX)
        except ConnectionResetError:
            return None
        return decode_from_master(packet) if packet else None

    def _send(self, message: FromZygote, *fds: int) -> None:
        socket.send_fds(self._control, [encode(message)], list(fds))


def main(argv: list[str] | None = None) -> int:
    """Serve the master at the other end of the inherited socket."""
    parser = argparse.ArgumentParser(prog="agentpool-zygote", description="Started by agentpool-master.")
    parser.add_argument("--control-fd", type=int, required=True)
    options = parser.parse_args(argv)
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        sys.stderr.write("agentpool's worker processes need Linux 5.4 or later (pidfd).\n")
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(options.control_fd, False)
    gc.disable()
    try:
        return Zygote(socket.socket(fileno=options.control_fd)).run()
    except msgspec.DecodeError as error:
        log.error("zygote.bad_message", error=str(error))
        return 1


if __name__ == "__main__":
    leave(main())
