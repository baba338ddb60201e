"""One worker process: `run_worker` is its composition root.

Up: register (blocking, before there is a loop, as nothing is of use before it); then the loop with heartbeat, inbox,
executor and listener; then whatever the first resync says shall be here.

Down, in this order: claiming stops first, so that nothing begins any more; running tasks end; agents snapshot, stop
and are released, each as soon as it is free, so that they are elsewhere quickly; the worker retires in Redis, which
needs it to hold nothing; only then the heartbeat stops, as a worker that does not beat would be taken for dead.
Connections are left to the end of the process. The process leaves by `os._exit`: threads of agents cannot hold it.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
import uvloop

from agentpool import logs
from agentpool.agent import AgentType
from agentpool.clock import monotonic
from agentpool.errors import RedisUnavailable
from agentpool.hosting import Host, HostSettings, Place
from agentpool.hosting.loading import load_types, make_importable
from agentpool.protocol.records import Beat
from agentpool.protocol.states import WorkerStatus
from agentpool.protocol.zygote import Exit, Fork, WorkerSettings
from agentpool.store import Store
from agentpool.store.connection import SyncConnection
from agentpool.store.subscription import Subscription
from agentpool.store.workers import register_worker
from agentpool.version import SCHEMA_VERSION, __version__
from agentpool_worker.by_type import RunByType
from agentpool_worker.drain import Drain
from agentpool_worker.exec_worker import read_order
from agentpool_worker.executor import Executor
from agentpool_worker.heartbeat import Heartbeat
from agentpool_worker.inbox import Inbox
from agentpool_worker.marks import open_marks
from agentpool_worker.place import WorkPlace
from agentpool_worker.process import become_worker, catch_stack_dumps, leave, start_time_of, worker_title
from agentpool_worker.registry import RedisRegistry
from agentpool_worker.restoring import Restoring
from agentpool_worker.turns import Turns

__all__ = ["main", "run_worker"]

log = structlog.get_logger("worker")

HURRY_MARGIN = 2.0


def run_worker(settings: WorkerSettings, fork: Fork, types: Mapping[str, AgentType]) -> int:
    """Be the worker of this order until its end; returns the exit status."""
    logs.configure(settings.log_level, settings.log_format, pool=settings.pool, process_id=fork.worker_id)
    worker_title(settings.pool, fork.worker_id, settings.install)
    # One try may not take so long that several beats are missed.
    timeout = min(settings.command_timeout, max(0.5, settings.heartbeat_timeout / 4))
    connection = SyncConnection(settings.redis_url, namespace=settings.namespace, timeout=timeout)
    if not _register(connection, settings, fork):
        return Exit.NOT_REGISTERED
    catch_stack_dumps(settings.stack_dir, fork.worker_id)
    return _run_loop(_Worker(settings, fork, types, connection))


def _register(connection: SyncConnection, settings: WorkerSettings, fork: Fork) -> bool:
    """Take the place that was ordered; False when there is none, or when Redis did not answer in time."""
    fields = _identity(settings, fork)
    deadline, delay = monotonic() + settings.start_timeout, 0.01
    while True:
        try:
            version = register_worker(connection, settings.pool, fork.worker_id, fork.secret, settings.capacity, fields)
        except RedisUnavailable as error:
            if monotonic() + delay > deadline:
                log.error("worker.boot_failed", error=str(error))
                return False
            time.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, no secret)
            delay = min(delay * 2, 0.5)
            continue
        if version is None:
            log.error("worker.boot_failed", error="there is no order for this worker, or it was given up")
        return version is not None


def _identity(settings: WorkerSettings, fork: Fork) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "start_time": start_time_of(os.getpid()),
        "host": settings.host,
        "host_id": settings.host_id,
        "boot_id": settings.boot_id,
        "pid_ns": settings.pid_ns,
        "master": fork.master,
        "release": __version__,
        "schema": SCHEMA_VERSION,
        "types_hash": settings.types_hash,
        "labels": " ".join(settings.labels),
    }


def _run_loop(worker: "_Worker") -> int:
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_log_stray)
    main = loop.create_task(worker.run(), name="worker")
    while not main.done():
        try:
            loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt) as error:
            # From a task that an agent made itself: the loop stopped, and is simply run on.
            log.error("agent.tried_to_exit", error=repr(error))
    try:
        return main.result()
    except Exception as error:
        log.exception("worker.broke", error=str(error))
        return Exit.DEAF


def _log_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that nobody waited for."""
    error = context.get("exception")
    log.error("loop.stray_error", message=context.get("message"), error=repr(error), exc_info=error)


class _Worker:
    """The parts of a worker, and how it comes to its end."""

    def __init__(
        self, settings: WorkerSettings, fork: Fork, types: Mapping[str, AgentType], connection: SyncConnection
    ) -> None:
        self._settings, self._worker_id, self._types = settings, fork.worker_id, types
        self._identity = {**_identity(settings, fork), "secret": fork.secret, "capacity": settings.capacity}
        self._connection = connection
        self._leaving = asyncio.Event()
        self._reason = ""
        self._retiring = self._is_cut_off = False
        self._is_known = True
        """Redis says already that this worker drains."""
        self._firing: asyncio.Task[None] | None = None
        self._terms = 0

    async def run(self) -> int:
        """Work until drained; returns the exit status."""
        self._build()
        self._catch_signals()
        self._heartbeat.start()
        self._watch_lease()
        essential = {
            asyncio.create_task(self._inbox.run(), name="inbox"),
            asyncio.create_task(self._executor.run(), name="executor"),
            asyncio.create_task(self._listener.run(), name="listener"),
        }
        for task in essential:
            task.add_done_callback(self._deaf)
        self._inbox.resync()
        await self._leaving.wait()
        await self._drain.run(self._reason, known=self._is_known)
        self._heartbeat.stop()
        return Exit.CLEAN

    def _build(self) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        store = self._store = Store.open(
            settings.redis_url,
            namespace=settings.namespace,
            connect_timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
        )
        turns = Turns(loop)
        place = WorkPlace(settings, self._worker_id, store)
        run_by_type = RunByType(place)
        host_settings = HostSettings.of(settings, settings.pool, self._worker_id, settings.capacity)
        # The host tells the executor and the inbox, which are made after it: hence the lambdas.
        self._host = Host(
            Place(
                host_settings,
                self._types,
                RedisRegistry(place),
                run_by_type,
                emit=lambda context, progress: self._executor.report(context.task_id or "", progress),
                marks=open_marks(settings.mark_dir, self._worker_id),
            ),
            on_idle=lambda name, mail: self._executor.agent_idle(name, mail),
            on_change=lambda: self._executor.slots_changed(),
            resync=lambda: self._inbox.resync(),
        )
        self._executor = Executor(place, self._host, turns, on_gone=self._look_again, on_runaway=self._leave_runaway)
        self._restoring = Restoring(
            place, self._host, self._executor, identity=self._identity, leaves=self._leaving.is_set
        )
        self._inbox = Inbox(
            place,
            self._host,
            self._executor,
            turns,
            self._restoring,
            on_drain=lambda: self._leave("drained"),
            on_gone=self._gone,
        )
        self._listener = Subscription(
            store.connection,
            [store.keys.worker_channel(self._worker_id)],
            on_message=lambda _, text: self._inbox.receive(text),
            on_ready=self._inbox.resync,
        )
        self._drain = Drain(place, self._host, self._executor, self._inbox, on_retire=self._expect_end)
        self._heartbeat = Heartbeat(
            settings,
            self._worker_id,
            self._connection,
            turns,
            on_beat=lambda beat: self._pass_on(loop, beat),
            on_return=lambda: self._in_loop(loop, self._look_again),
            on_cut_off=lambda: self._in_loop(loop, self._cut_off),
            on_orphaned=lambda: self._in_loop(loop, self._orphaned),
            who_runs=lambda: _task_name(loop),
            warm=lambda: " ".join(self._host.by_type.warm),
            listens=lambda: self._listener.is_up,
            ahead=lambda: self._executor.ahead,
        )

    # -- what it is told ----------------------------------------------------------------------------------------

    def _pass_on(self, loop: asyncio.AbstractEventLoop, beat: Beat) -> None:
        """Bring a beat's answer into the loop if there is anything in it; called in the heartbeat's thread."""
        is_late = beat.next_due_ms == 0
        news = beat.version != self._inbox.version or beat.status is WorkerStatus.DRAINING or beat.turns
        if news or is_late or self._is_cut_off:
            self._in_loop(loop, self._heed, beat)

    @staticmethod
    def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
            loop.call_soon_threadsafe(call, *arguments)

    def _heed(self, beat: Beat) -> None:
        if beat.version != self._inbox.version or self._is_cut_off:
            self._is_cut_off = False
            self._host.agents.bar_no_types()
            self._inbox.resync()
        if beat.status is WorkerStatus.DRAINING:
            self._leave("drained")
        if beat.turns:
            self._executor.wake_lanes()
        if beat.next_due_ms == 0 and (self._firing is None or self._firing.done()):
            # Nobody leads, or the leader is late: timers do not wait for it.
            self._firing = asyncio.create_task(self._fire_timers(), name="timers")

    async def _fire_timers(self) -> None:
        try:
            await self._store.tasks.fire_timers(self._settings.pool)
        except RedisUnavailable as error:
            log.warning("redis.unavailable", doing="timers", error=str(error))

    def _cut_off(self) -> None:
        """The lease is about to end unseen: agents that may not run twice stop, and their tasks go back. They come back
        with the next beat that is answered, and not before: whatever else gets through does not renew the lease.
        """
        if self._is_cut_off:
            return
        self._is_cut_off = True
        exclusive = {name for name, type in self._types.items() if type.cls.on_redis_loss == "stop"}
        log.error("worker.cut_off", stopping=sorted(exclusive))
        self._restoring.note_stopped(
            pinned for pinned in self._host.agents.all() if pinned.desired.agent_type in exclusive
        )
        self._executor.give_back_types(exclusive)
        self._host.agents.bar_types(exclusive, "the worker is cut off from Redis")

    def _watch_lease(self) -> None:
        """Look when the lease would be about to end: a beat that hangs tells nothing."""
        left = self._heartbeat.lease_left()
        if left <= 0:
            self._cut_off()
        asyncio.get_running_loop().call_later(max(left, self._settings.heartbeat_interval), self._watch_lease)

    def _orphaned(self) -> None:
        """Nobody has looked after this worker for long: it hands over what it has and goes."""
        self._leave(f"its master has been gone for {self._settings.orphan_timeout:g} s", known=False)

    # -- its end ------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._handle_term)

    def _handle_term(self) -> None:
        """First SIGTERM: drain. Second: drain quickly, and leave in any case soon. Third: leave at once."""
        if self._terms == 1:
            self._drain.hurry()
            patience = 3 * self._settings.agent_stop_timeout + HURRY_MARGIN
            asyncio.get_running_loop().call_later(patience, leave, Exit.CLEAN)
        elif self._terms > 1:
            leave(Exit.CLEAN)
        self._terms += 1
        self._leave("SIGTERM", known=False)

    def _leave(self, reason: str, *, known: bool = True) -> None:
        if not self._leaving.is_set():
            log.info("worker.draining", reason=reason)
            self._reason, self._is_known = reason, known
            self._leaving.set()

    def _leave_runaway(self, agent: str) -> None:
        """An agent goes on though its task is over: this process ends for it, when the others are done."""
        log.error("worker.runaway", agent=agent)
        self._leave(f"{agent} ignores that its task was cancelled", known=False)

    def _expect_end(self) -> None:
        self._retiring = True
        self._heartbeat.retiring()

    def _look_again(self) -> None:
        """Redis was away, or does not know this worker: see what stands there now."""
        self._inbox.resync()

    def _gone(self) -> None:
        if self._retiring:
            return
        log.error("worker.given_up")
        leave(Exit.GIVEN_UP)

    def _deaf(self, task: "asyncio.Task[None]") -> None:
        """An essential loop ended, which it never should: a worker that beats but does nothing is the worst kind."""
        error = None if task.cancelled() else task.exception()
        log.critical("worker.deaf", loop=task.get_name(), error=repr(error), exc_info=error)
        leave(Exit.DEAF)


def _task_name(loop: asyncio.AbstractEventLoop) -> str:
    """Return what the event loop runs at this moment; agents' calls are named for their agents."""
    task = asyncio.current_task(loop)
    return task.get_name() if task else ""


def main(argv: list[str] | None = None) -> int:
    """Be a worker in an interpreter of its own: what a zygote execs when it cannot fork."""
    parser = argparse.ArgumentParser(prog="agentpool-worker", description="Started by agentpool's zygote.")
    parser.add_argument("--order-fd", type=int, required=True)
    order = read_order(parser.parse_args(argv).order_fd)
    become_worker()
    try:
        make_importable(order.app_dir)
        types = load_types(order.agents)
    except BaseException as error:
        log.exception("worker.boot_failed", process_id=order.fork.worker_id, error=str(error))
        return Exit.BOOT_FAILED
    return run_worker(order.settings, order.fork, types)


if __name__ == "__main__":
    status: int = Exit.BOOT_FAILED
    try:
        status = main()
    finally:
        sys.stderr.flush()
        leave(status)
