"""What systemd is told: each message alone, and all of them from a real master, through a socket like systemd's."""

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.master import Master
from support.wait import wait_until, wait_until_sync

from agentpool.clock import monotonic
from agentpool.master.notify import Notifier, Watchdog, watchdog_seconds


class NotifySocket:
    """The socket that systemd would listen on; `messages` are what came, in order."""

    def __init__(self, address: str) -> None:
        self.address, self.messages, self.times = address, list[str](), list[float]()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def receive(self) -> list[str]:
        """Take what came since, and return all messages so far."""
        while True:
            try:
                self.messages.append(self._socket.recv(4096).decode())
                self.times.append(time.monotonic())
            except BlockingIOError:
                return self.messages

    def has(self, start: str, after: int = 0) -> bool:
        return any(message.startswith(start) for message in self.receive()[after:])

    def longest_hunger(self, after: int = 0) -> float:
        """Seconds of the longest time in which the watchdog was not fed."""
        received = zip(self.times[after:], self.messages[after:], strict=True)
        fed = [at for at, message in received if message == "WATCHDOG=1"]
        assert len(fed) > 2
        return max(later - earlier for earlier, later in itertools.pairwise(fed))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    fake = NotifySocket(str(tmp_path / "notify"))
    yield fake
    fake.close()


@pytest.fixture
def notifier(systemd: NotifySocket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": systemd.address})


class TestNotifier:
    def test_ready(self, notifier: Notifier, systemd: NotifySocket) -> None:
        notifier.ready()
        assert systemd.receive() == ["READY=1"]

    def test_reloading_says_when(self, notifier: Notifier, systemd: NotifySocket) -> None:
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        first, _, second = systemd.receive()[0].partition("\n")
        name, _, usec = second.partition("=")
        assert (first, name) == ("RELOADING=1", "MONOTONIC_USEC")
        assert before <= int(usec) <= time.monotonic_ns() // 1000

    def test_stopping_and_feeding(self, notifier: Notifier, systemd: NotifySocket) -> None:
        notifier.feed()
        notifier.stopping()
        assert systemd.receive() == ["WATCHDOG=1", "STOPPING=1"]

    def test_a_status_is_sent_when_it_changes(self, notifier: Notifier, systemd: NotifySocket) -> None:
        for text in ("Running pools: a", "Running pools: a", "Redis away for 3 s", "Running pools: a"):
            notifier.status(text)
        assert systemd.receive() == [
            "STATUS=Running pools: a",
            "STATUS=Redis away for 3 s",
            "STATUS=Running pools: a",
        ]

    def test_an_abstract_socket(self) -> None:
        systemd = NotifySocket(f"@agentpool-test-{os.getpid()}")
        Notifier({"NOTIFY_SOCKET": systemd.address}).ready()
        assert systemd.receive() == ["READY=1"]
        systemd.close()

    def test_without_a_socket_nothing_happens(self) -> None:
        Notifier({}).ready()

    def test_a_socket_that_is_gone_does_no_harm(self, tmp_path: Path) -> None:
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


class TestWatchdog:
    @pytest.mark.parametrize(
        ("environ", "seconds"),
        [
            ({}, None),
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
            ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
        ],
    )
    def test_period(self, environ: dict[str, str], seconds: float | None) -> None:
        assert watchdog_seconds(environ) == seconds

    def feed(self, notifier: Notifier, *ages: float) -> None:
        watchdog = Watchdog(notifier, 3.0, lambda: [monotonic() - age for age in ages])
        assert watchdog.interval == 1.0
        asyncio.run(watchdog.feed_once())

    def test_is_fed_while_every_loop_turns(self, notifier: Notifier, systemd: NotifySocket) -> None:
        self.feed(notifier, 0.0, 2.9)
        assert systemd.receive() == ["WATCHDOG=1"]

    def test_starves_when_one_loop_hangs(self, notifier: Notifier, systemd: NotifySocket) -> None:
        self.feed(notifier, 0.0, 3.1)
        assert systemd.receive() == []

    def test_is_fed_without_loops(self, notifier: Notifier, systemd: NotifySocket) -> None:
        self.feed(notifier)
        assert systemd.receive() == ["WATCHDOG=1"]


PERIOD = 1.5
"""Seconds of the watchdog; less than what a loop waits between two tries while Redis is away."""


def redis_pid(master: Master) -> int:
    """Pid of the embedded server."""
    return next(process.pid for process in master.children() if "unixsocket" in " ".join(process.cmdline()))


@pytest.fixture
def master(tmp_path: Path, systemd: NotifySocket) -> Iterator[Master]:
    running = Master(
        tmp_path, {"p": {"agents": ["sample_agents:Sleeper"], "max_workers": 1}}, redis={"command_timeout": 0.5}
    )
    try:
        yield running.start(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC=str(int(PERIOD * 1_000_000)))
    finally:
        running.sweep()


def test_a_master_tells_systemd_everything(master: Master, systemd: NotifySocket) -> None:
    # It is ready, says what runs, and feeds the watchdog.
    wait_until_sync(lambda: systemd.has("STATUS=Running pools: p"))
    assert systemd.has("READY=1")
    wait_until_sync(lambda: systemd.receive().count("WATCHDOG=1") >= 3, message=master.output)

    # A reload begins and ends.
    mark = len(systemd.messages)
    master.signal(signal.SIGHUP)
    wait_until_sync(lambda: systemd.has("RELOADING=1\nMONOTONIC_USEC=", mark) and systemd.has("READY=1", mark))
    later = systemd.messages[mark:]
    assert later.index("READY=1") > [m.startswith("RELOADING") for m in later].index(True)

    # Redis away for twice the watchdog's period: it is fed all the same, and the status says why nothing moves.
    redis, mark = redis_pid(master), len(systemd.messages)
    os.kill(redis, signal.SIGSTOP)
    try:
        wait_until_sync(lambda: systemd.has("STATUS=Redis away for ", mark), 15, message=master.output)
        start = time.monotonic()
        wait_until_sync(lambda: systemd.receive() and time.monotonic() - start > 2 * PERIOD)
    finally:
        os.kill(redis, signal.SIGCONT)
    assert systemd.longest_hunger(mark) < PERIOD
    assert master.process
    assert master.process.poll() is None
    mark = len(systemd.messages)
    wait_until_sync(lambda: systemd.has("STATUS=Running pools: p", mark), 20, message=master.output)

    # It says that it stops before it is gone.
    mark = len(systemd.messages)
    master.signal(signal.SIGTERM)
    wait_until_sync(lambda: systemd.has("STOPPING=1", mark))
    assert master.stop() == 0, master.output()


def test_a_frozen_master_starves_the_watchdog(master: Master, systemd: NotifySocket) -> None:
    wait_until_sync(lambda: systemd.has("WATCHDOG=1"))
    master.signal(signal.SIGSTOP)
    try:
        systemd.receive()
        mark, start = len(systemd.messages), time.monotonic()
        wait_until_sync(lambda: time.monotonic() - start > PERIOD)
        assert systemd.receive()[mark:] == []
    finally:
        master.signal(signal.SIGCONT)


async def test_a_long_drain_does_not_starve_the_watchdog(master: Master, systemd: NotifySocket) -> None:
    """Loops that were stopped on purpose do not hang."""
    async with master.client() as client:
        pool = client.pool("p")
        await pool.submit("Sleeper", 2.5 * PERIOD)

        async def runs() -> bool:
            return (await pool.stats()).running_tasks == 1

        await wait_until(runs)
        systemd.receive()
        mark = len(systemd.messages)
        master.signal(signal.SIGTERM)
        assert master.process
        await wait_until(lambda: systemd.receive() and master.process.poll() is not None, 20, message=master.output)
    assert systemd.has("STOPPING=1", mark)
    assert systemd.times[-1] - systemd.times[mark] > 2 * PERIOD
    assert systemd.longest_hunger(mark) < PERIOD
    assert master.stop() == 0
