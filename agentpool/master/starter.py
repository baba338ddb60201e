"""Carrying out start orders on this host: those of this master as the leader, and those that another leader wrote.

An order stands in Redis before anything is forked. One that names this master and is not under way here, because
another master leads, or because an earlier process of this master died over it, is taken with a new secret: what was
forked for it before cannot register any more, and what has registered already is adopted.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import structlog

from agentpool.errors import ConfigError
from agentpool.master.boots import Boots
from agentpool.master.crew import Crew
from agentpool.master.scope import PoolScope
from agentpool.master.worker_process import WorkerProcess
from agentpool.master.zygotes import ZygoteGone
from agentpool.protocol.codec import new_id
from agentpool.protocol.zygote import Fork

__all__ = ["INTERVAL", "Order", "Starter"]

log = structlog.get_logger("starter")

INTERVAL = 1.0

Order = tuple[str, str]
"""A worker's id and the secret by which it proves that it was ordered."""


class Starter:
    """Starts one pool's workers on this host. `fork(order)` makes the process and returns it with its start time."""

    def __init__(
        self,
        scope: PoolScope,
        crew: Crew,
        boots: Boots,
        fork: Callable[[Fork], Awaitable[tuple[WorkerProcess, int]]],
    ) -> None:
        self._scope, self._crew, self._boots, self._fork = scope, crew, boots, fork
        self._store, self._pool = scope.store, scope.pool
        self.under_way: set[str] = set()
        """Workers whose orders are being carried out."""

    async def start_once(self) -> float | None:
        """Take every order that names this master; returns when it wants to run again."""
        if self._boots.delay() > 0 and not self._boots.given_up:
            return self._boots.delay()
        await asyncio.gather(*(self._take(worker) for worker in await self._waiting()))
        return None

    async def give_up_orders(self) -> None:
        """Leave no order to be waited for: this master starts nothing any more."""
        for worker in await self._waiting():
            if not self._is_known(worker):
                self._crew.lose(worker, "its master stops")

    async def carry_out(self, order: Order) -> None:
        """Fork the worker that was ordered and write down who it is."""
        worker_id, secret = order
        if self._is_known(worker_id):
            return
        with self._going_about(worker_id):
            await self._start(worker_id, secret)

    @contextlib.contextmanager
    def _going_about(self, worker_id: str) -> Iterator[None]:
        """Nobody else here goes about an order at the same time."""
        self.under_way.add(worker_id)
        try:
            yield
        finally:
            self.under_way.discard(worker_id)

    async def _waiting(self) -> list[str]:
        orders = (await self._store.hosts.view(self._pool)).orders
        return [order.worker for order in orders if order.master == self._scope.master]

    def _is_known(self, worker_id: str) -> bool:
        return worker_id in self.under_way or worker_id in self._crew.processes or worker_id in self._crew.dead

    async def _take(self, worker_id: str) -> None:
        if self._is_known(worker_id):
            return  # the leader here has begun since the look
        if self._boots.given_up:
            self._crew.lose(worker_id, self._boots.given_up)
            return
        secret = new_id()
        with self._going_about(worker_id):
            match await self._store.hosts.take_order(self._pool, worker_id, self._scope.master, secret):
                case "ok":
                    await self._start(worker_id, secret)
                case "begun":
                    await self._adopt(worker_id)

    async def _adopt(self, worker_id: str) -> None:
        """Take over what an earlier process of this master forked and what registered by itself."""
        record = await self._store.workers.record(worker_id)
        if record and record.pid and worker_id not in self._crew.processes:
            self._crew.adopt(record, self._scope.host)

    async def _start(self, worker_id: str, secret: str) -> None:
        scope, host = self._scope, self._scope.host
        order = Fork(worker_id=worker_id, secret=secret, master=scope.master, worker=scope.worker_settings())
        try:
            process, started = await self._fork(order)
        except (ZygoteGone, ConfigError) as error:
            self._crew.lose(worker_id, str(error))
            return
        self._crew.add(process)
        fields = {
            "pid": process.pid,
            "start_time": started,
            "host": host.name,
            "host_id": host.host_id,
            "boot_id": host.boot_id,
            "pid_ns": host.pid_ns,
        }
        await self._store.workers.start(self._pool, worker_id, secret, fields)
