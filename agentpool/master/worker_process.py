"""One worker process of this host: watched through its pidfd, ended by a ladder, forked or adopted alike."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import structlog

from agentpool.clock import monotonic
from agentpool.master.host import cpu_ticks, is_stopped, send_signal
from agentpool.protocol.deaths import Death, Killed, Vanished, from_wait_status

__all__ = ["WorkerProcess"]

log = structlog.get_logger("worker_process")

STATUS_WAIT = 0.02
"""Seconds to wait for the exit status after the pidfd told of the end; the zygote's message is under way."""
SECOND_TERM = 0.1
STACK_WAIT = 0.3
STACK_BYTES_MAX = 8192


class WorkerProcess:
    """A process that is this master's to watch and to end. `on_end` is called once, with how it died."""

    def __init__(self, worker_id: str, pid: int, pidfd: int, on_end: Callable[["WorkerProcess"], None]) -> None:
        self.worker_id, self.pid = worker_id, pid
        self.ended = asyncio.Event()
        self.started_at = monotonic()
        self.draining_since: float | None = None
        self.unregistered_since: float | None = None
        self._pidfd = pidfd
        self._on_end = on_end
        self._status: int | None = None
        self._status_known = asyncio.Event()
        self._why = ""
        self._ticks = (self.started_at, cpu_ticks(pid))
        asyncio.get_running_loop().add_reader(pidfd, self._exit_seen)

    @property
    def death(self) -> Death:
        """How it ended; meaningful after `ended`."""
        if self._status is None:
            return Killed(signal.SIGKILL, self._why) if self._why else Vanished()
        return from_wait_status(self._status, self._why)

    def set_status(self, status: int) -> None:
        """Take the exit status that the zygote reports."""
        self._status = status
        self._status_known.set()

    def kill(self, why: str) -> None:
        """SIGKILL; `why` becomes part of the death."""
        self._why = self._why or why
        if not self.ended.is_set():
            send_signal(self._pidfd, signal.SIGKILL)

    def hurry(self) -> None:
        """SIGTERM twice: a worker drains at the first, if it did not before, and cancels its tasks at the second."""
        self._terminate()
        asyncio.get_running_loop().call_later(SECOND_TERM, self._terminate)

    def _terminate(self) -> None:
        if self._pidfd >= 0:
            send_signal(self._pidfd, signal.SIGTERM)

    async def stack(self, folder: str) -> str:
        """Have the process dump the stacks of its threads, in C, so that a held interpreter lock is no obstacle."""
        path = Path(folder) / f"{self.worker_id}.stack"
        before = path.stat().st_size if path.exists() else 0
        send_signal(self._pidfd, signal.SIGUSR2)
        await asyncio.sleep(STACK_WAIT)
        if not path.exists():
            return ""
        return path.read_bytes()[before:][:STACK_BYTES_MAX].decode(errors="replace")

    def is_stopped(self) -> bool:
        """Tell whether it is stopped by a signal."""
        return is_stopped(self.pid)

    def is_busy(self) -> bool:
        """Tell whether it used most of a core since it was last asked."""
        now, ticks = monotonic(), cpu_ticks(self.pid)
        (then, before), self._ticks = self._ticks, (now, ticks)
        seconds = (ticks - before) / os.sysconf("SC_CLK_TCK")
        return now > then and seconds / (now - then) > 0.5

    def forget(self) -> None:
        """Watch no more and leave the process alone: it lives on for the next master."""
        self._close()

    def _exit_seen(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._task = asyncio.create_task(self._end(), name=f"end of {self.worker_id}")

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_WAIT):
                await self._status_known.wait()
        self._close()
        self.ended.set()
        self._on_end(self)

    def _close(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
