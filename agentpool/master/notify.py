"""Messages to systemd: readiness, reloading, stopping, status, and the watchdog.

The protocol is one datagram a message to the socket in `NOTIFY_SOCKET`; without it every call does nothing. The
watchdog is fed only while each watched loop turns: an answered or timed-out Redis call counts, so a Redis that is away
does not kill the master, and a hung loop does.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping

import structlog

from agentpool.clock import monotonic

__all__ = ["Notifier", "watchdog_seconds"]

log = structlog.get_logger("notify")


class Notifier:
    """Sends messages to the service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""

    def ready(self) -> None:
        """Say that everything runs; also ends a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is being read again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the service stops."""
        self._send("STOPPING=1")

    def feed(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`; repeats are not sent."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(self._address)
                sock.send(message.encode())
        except OSError as error:
            log.warning("notify.failed", error=str(error), message=message)


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return systemd's watchdog period for this process, or None when there is none."""
    period, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not period.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(period) / 1_000_000


class Watchdog:
    """Feeds the watchdog while the loops turn. `last_turns` gives each loop's last turn, in monotonic seconds."""

    def __init__(self, notifier: Notifier, period: float, last_turns: Callable[[], list[float]]) -> None:
        self.interval = period / 3
        self._notifier, self._period, self._last_turns = notifier, period, last_turns

    async def feed_once(self) -> None:
        """Feed it, unless a loop has not turned for a whole period."""
        oldest = min(self._last_turns(), default=monotonic())
        if monotonic() - oldest < self._period:
            self._notifier.feed()
        else:
            log.error("watchdog.starved", seconds=round(monotonic() - oldest, 1))
