"""The composition root of `agentpool-master`.

Starting order: configuration, data directory (locked, so that one master uses it), embedded server, check of the
server, zygotes, loops; then the service manager is told. Stopping order: pools first (see `master/keeper.py`), then
the connection, and the embedded server last, because the workers write to it until they end.

Signal handlers only queue; the loop below dispatches. The first TERM or INT drains, the second hurries, HUP reloads.
USR2 makes room for a successor in the same process (see `master/successor.py`); `make_room` is then to be called last.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from agentpool import logs
from agentpool.client.choice import uses_processes
from agentpool.config import Loaded, Settings, redact_url
from agentpool.errors import AgentPoolError, ConfigError, RedisUnavailable
from agentpool.master.embedded import CHECK_INTERVAL, ServerKeeper
from agentpool.master.host import Host, require_linux
from agentpool.master.notify import Notifier, Watchdog, watchdog_seconds
from agentpool.master.successor import become_successor, keep_signals, successor_problem, take_kept_signals
from agentpool.master.supervisor import Supervisor
from agentpool.periodic import Periodic, end_task
from agentpool.redis_server import EmbeddedServer
from agentpool.server_check import check_server
from agentpool.store import Store
from agentpool.version import __version__

__all__ = ["Daemon", "Ready", "master_of"]

log = structlog.get_logger("daemon")

STATUS_INTERVAL = 1.0

Ready = Callable[["Daemon"], None]

LATER = (signal.SIGHUP, signal.SIGUSR2)
"""What waits until a start or reload is over."""


class Daemon:
    """One master. `load` reads the configuration, again at each reload; `on_ready` is called once it runs; `flags` are
    those of the command line, for the check of a successor.
    """

    def __init__(self, load: Callable[[], Loaded], on_ready: Ready | None = None, flags: Sequence[str] = ()) -> None:
        self._load, self._on_ready, self._flags = load, on_ready, flags
        self.settings: Settings
        self.server: EmbeddedServer | None = None
        self.supervisor: Supervisor
        self._notifier = Notifier()
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._hurry = asyncio.Event()
        self._stopping = False
        self.is_succeeded = False
        """It ended to make room for its successor."""
        self._on_terminal = sys.stderr.isatty()
        """A hang-up then means that the terminal was closed, not that the configuration shall be read."""

    @property
    def url(self) -> str:
        """URL of the server in use."""
        return self.server.url if self.server else self.settings.redis.url or ""

    async def run(self) -> None:
        """Run until told to stop; raises `AgentPoolError` when it cannot start."""
        require_linux()
        if not uses_processes(os.environ):
            raise ConfigError(
                "USE_MULTIPROCESSING is off: agents run inside each program that uses them, so there is nothing for a "
                "master to do. Unset it to have worker processes."
            )
        self.settings = self._read()
        data_dir = _prepare_data_dir(self.settings)
        with _only_master(data_dir):
            self._catch_signals()
            try:
                await self._start_server(data_dir)
                await self._serve(data_dir)
            finally:
                await self._stop_server()

    def make_room(self) -> None:
        """Become the successor; call it when `run` has returned and `is_succeeded`. Never returns."""
        unheard = []
        while not self._signals.empty():
            unheard.append(self._signals.get_nowait())
        become_successor(unheard)

    # -- starting -----------------------------------------------------------------------------------------------

    def _read(self) -> Settings:
        loaded = self._load()
        logs.configure(loaded.settings.log.level, loaded.settings.log.format)
        for warning in loaded.warnings:
            log.warning("config.warning", detail=warning)
        return loaded.settings

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        take_kept_signals()

    async def _start_server(self, data_dir: Path) -> None:
        if self.settings.redis.url is None:
            self.server = EmbeddedServer(data_dir, self.settings.redis)
            await asyncio.to_thread(self.server.start)
            log.info(
                "redis.adopted" if self.server.adopted else "redis.started",
                pid=self.server.pid,
                url=redact_url(self.url),
            )
            for warning in self.server.warnings:
                log.warning("redis.warning", detail=warning)
        redis = self.settings.redis
        findings = await asyncio.to_thread(check_server, self.url, redis.connect_timeout, namespace=redis.namespace)
        log.info(
            "redis.durability",
            appendonly=findings.facts.get("appendonly"),
            appendfsync=findings.facts.get("appendfsync"),
            durability=findings.facts.get("durability", "unknown: the server does not say"),
        )
        for warning in findings.warnings:
            log.warning("redis.warning", detail=warning)
        if findings.errors:
            raise RedisUnavailable("\n".join(findings.errors))

    async def _serve(self, data_dir: Path) -> None:
        redis = self.settings.redis
        store = Store.open(
            self.url,
            namespace=redis.namespace,
            connect_timeout=redis.connect_timeout,
            command_timeout=redis.command_timeout,
        )
        host = Host.find(data_dir, self.settings.host_id)
        self.supervisor = Supervisor(store, host, self.settings, self._hurry)
        try:
            if not await self._unless_told_to_stop(self._start_pools()):
                await self.supervisor.stop()
                return
            async with _running(self._side_loops()):
                self._notifier.ready()
                log.info("master.ready", master=host.master_id, pid=os.getpid(), release=__version__)
                if self._on_ready:
                    self._on_ready(self)
                await self._dispatch()
                if self.is_succeeded:
                    await self._hand_over()
                    return
                self._stopping = True
                self._notifier.stopping()
                await self._stop_pools()
        finally:
            await store.close()

    async def _start_pools(self) -> None:
        await self.supervisor.open()
        await self.supervisor.start()

    def _side_loops(self) -> list[Periodic]:
        loops = [Periodic("status", self._show_status, STATUS_INTERVAL)]
        if self.server:
            loops.append(Periodic("embedded server", ServerKeeper(self.server).check_once, CHECK_INTERVAL))
        period = watchdog_seconds()
        if period:
            watchdog = Watchdog(self._notifier, period, self.supervisor.last_turns)
            loops.append(Periodic("watchdog", watchdog.feed_once, watchdog.interval))
        return loops

    async def _show_status(self) -> None:
        away = self.supervisor.redis_away_for()
        doing = "Stopping" if self._stopping else "Running"
        pools = ", ".join(sorted(self.supervisor.keepers))
        self._notifier.status(f"Redis away for {away:.0f} s" if away else f"{doing} pools: {pools}")

    # -- running ------------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        """Handle signals until one asks to stop."""
        handlers: dict[signal.Signals, Callable[[], Awaitable[bool]]] = {
            signal.SIGTERM: self._handle_term,
            signal.SIGINT: self._handle_term,
            signal.SIGHUP: self._handle_hup,
            signal.SIGUSR2: self._handle_usr2,
        }
        while await handlers[await self._signals.get()]():
            pass

    async def _unless_told_to_stop(self, work: Coroutine[Any, Any, None]) -> bool:
        """Start or reload something, which may take long; False when TERM or INT came meanwhile and it was given up."""
        task, later = asyncio.create_task(work), list[signal.Signals]()
        while not task.done():
            signalled = asyncio.create_task(self._signals.get())
            await asyncio.wait([task, signalled], return_when=asyncio.FIRST_COMPLETED)
            if signalled.done() and signalled.result() not in LATER:
                await self._handle_term()
                await end_task(task)
                return False
            if signalled.done():
                later.append(signalled.result())
            signalled.cancel()
        await task
        for number in dict.fromkeys(later):
            self._signals.put_nowait(number)
        return True

    async def _handle_term(self) -> bool:
        log.info("master.stopping", hint="once more to hurry")
        return False

    async def _handle_hup(self) -> bool:
        if self._on_terminal and not os.isatty(sys.stderr.fileno()):
            log.warning("terminal.closed")
            return False
        self._notifier.reloading()
        goes_on = await self._unless_told_to_stop(self._reload())
        self._notifier.ready()
        return goes_on

    async def _reload(self) -> None:
        """Read the configuration again; one with errors changes nothing."""
        try:
            settings = self._read()
            problems = await self.supervisor.apply(settings)
            self.settings = settings
        except AgentPoolError as error:
            problems = [str(error)]
        for problem in problems:
            log.error("config.not_applied", error=problem)
        log.info("config.reloaded", problems=len(problems), pools=sorted(self.supervisor.keepers))

    async def _handle_usr2(self) -> bool:
        """Make room for a successor, if what is installed and configured now is fit to be one."""
        log.info("master.upgrading", release=__version__)
        if not await self._unless_told_to_stop(self._check_successor()):
            return False
        return not self.is_succeeded

    async def _check_successor(self) -> None:
        try:
            await self.supervisor.note_upgrade("checking what is installed")
            problem = self._moved() or await successor_problem(self._flags)
            await self.supervisor.note_upgrade(f"refused: {problem}" if problem else "under way", renew=not problem)
        except (AgentPoolError, OSError) as error:
            problem = str(error)
        if problem:
            log.error("upgrade.refused", error=problem)
        self.is_succeeded = not problem

    def _moved(self) -> str:
        """Say what has changed that a successor could not adopt its workers with, or ''."""
        loaded, settings = self._load().settings, self.settings
        fixed = ("redis", "data_dir", "host_id")
        changed = [name for name in fixed if getattr(loaded, name) != getattr(settings, name)]
        return f"{' and '.join(changed)} changed, which needs a restart of the master" if changed else ""

    async def _hand_over(self) -> None:
        """Leave everything as it is for the successor, which adopts it."""
        self._notifier.reloading()
        keep_signals()
        await self.supervisor.hand_over()
        log.info("master.succeeded", pid=os.getpid())

    # -- stopping -----------------------------------------------------------------------------------------------

    async def _stop_pools(self) -> None:
        stopping = asyncio.create_task(self.supervisor.stop(), name="stopping")
        while not stopping.done():
            again = asyncio.create_task(self._signals.get())
            await asyncio.wait([stopping, again], return_when=asyncio.FIRST_COMPLETED)
            if again.done() and again.result() not in LATER:
                log.warning("master.hurrying")
                self._hurry.set()
            again.cancel()
        await stopping

    async def _stop_server(self) -> None:
        if self.is_succeeded:
            return
        if self.server:
            await asyncio.to_thread(self.server.stop)
        log.info("master.stopped")


@contextlib.asynccontextmanager
async def _running(loops: list[Periodic]) -> AsyncIterator[None]:
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            await loop.stop()


def _prepare_data_dir(settings: Settings) -> Path:
    data_dir = Path(settings.data_dir)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("stacks", "marks", "audit"):
            (data_dir / folder).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data_dir {data_dir} cannot be used: {error.strerror}. Choose another with --data-dir or "
            "AGENTPOOL_DATA_DIR."
        ) from None
    return data_dir


def master_of(data_dir: Path) -> int:
    """Return the pid of the master that holds a data directory, or 0."""
    try:
        with (data_dir / "master.lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return 0
    except BlockingIOError:
        return int((data_dir / "master.lock").read_text().strip() or 0)
    except OSError:
        return 0


@contextlib.contextmanager
def _only_master(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this master; the lock goes with the process, however it ends."""
    with (data_dir / "master.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"Another agentpool-master (pid {file.read().strip()}) uses {data_dir}. "
                "Stop it, or give this one its own --data-dir."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
