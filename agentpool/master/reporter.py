"""Telling Redis that this master looks after its workers, and what room its host has.

The leader starts workers only where a master reports, and leaves frozen workers to a master that lives; workers whose
master is silent for `orphan_timeout` leave. Two masters may not have one identity, as when a data directory was copied:
the second is refused, unless the first is known to be gone.
"""

import asyncio
import os
from collections.abc import Callable

import structlog

from agentpool.clock import monotonic
from agentpool.errors import ConfigError
from agentpool.master.boots import Boots
from agentpool.master.host import start_time
from agentpool.master.room import measure_room
from agentpool.master.scope import PoolScope
from agentpool.protocol.codec import new_id
from agentpool.protocol.records import HostRecord
from agentpool.store.hosts import ALIVE_MS
from agentpool.version import SCHEMA_OLDEST, __version__

__all__ = ["Reporter"]

log = structlog.get_logger("reporter")

INTERVAL = 1.0
RETRY_DELAY = 0.25

SESSION = new_id()
"""Of this process: another master under the same id has another one."""


class Reporter:
    """Reports for one pool. `workers()` counts the worker processes of this host in all pools."""

    def __init__(self, scope: PoolScope, boots: Boots, workers: Callable[[], int]) -> None:
        self._scope, self._boots, self._workers = scope, boots, workers
        self._replaces = ""
        self._has_joined = False
        self._scaled_at = -1

    @property
    def interval(self) -> float:
        """Seconds between two beats: three in the time in which a master counts as alive."""
        return min(INTERVAL, self._scope.alive_ms / 3000)

    async def check(self) -> None:
        """Raise `ConfigError` unless this release can take part in the pool, beside everyone who does now."""
        store, pool = self._scope.store, self._scope.pool
        await store.pools.check_release([pool])
        hosts = (await store.hosts.view(pool)).living(ALIVE_MS)
        workers = await store.workers.all(pool)
        others = [f"the master {host.master} (release {host.release})" for host in hosts if _is_behind(host.schema)]
        others += [
            f"worker {w.process_id} (release {w.release})" for w in workers if w.release and _is_behind(w.schema)
        ]
        if others:
            raise ConfigError(
                f'Pool "{pool}": release {__version__} cannot work beside {others[0]}'
                f"{f' and {len(others) - 1} others' if len(others) > 1 else ''}, which is more than one step older. "
                "Upgrade through the release between them, or stop the old ones first."
            )

    async def join(self) -> None:
        """Report for the first time; raises `ConfigError` when another process has this master's id and beats on."""
        await self._note_predecessor()
        deadline = monotonic() + ALIVE_MS / 1000 + 2 * RETRY_DELAY
        while True:
            try:
                await self.report_once()
            except ConfigError:
                # It may have died in another container or boot, where its process cannot be looked for.
                if monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_DELAY)
            else:
                return

    async def is_refused(self) -> bool:
        """Tell whether this master, which may not have joined yet, cannot: another process beats under its id, and all
        that bears that id is the other's.
        """
        if self._has_joined:
            return False
        await self._note_predecessor()
        try:
            await self.report_once()
        except ConfigError:
            return True
        return False

    async def _note_predecessor(self) -> None:
        scope = self._scope
        before = await scope.store.hosts.one(scope.pool, scope.master)
        if before and _is_gone(before, scope):
            self._replaces = before.session

    async def report_once(self) -> None:
        """Beat, and say what room there is; begin to start workers again when somebody scaled the pool."""
        scope, host, room = self._scope, self._scope.host, measure_room()
        scaled_at = await scope.store.hosts.report(
            scope.pool,
            scope.master,
            SESSION,
            host_id=host.host_id,
            labels=scope.root.labels,
            replaces=self._replaces,
            fields={
                "host": host.name,
                "boot_id": host.boot_id,
                "pid_ns": host.pid_ns,
                "pid": os.getpid(),
                "start_time": start_time(os.getpid()),
                "cpus": room.cpus,
                "load": room.load,
                "memory_mb": room.memory_mb,
                "available_mb": room.available_mb,
                "min_free_mb": scope.root.min_free_memory_mb,
                "workers": self._workers(),
                "workers_max": scope.root.max_host_workers,
                "closed": self._boots.given_up,
                "release": scope.release,
                "types_hash": scope.types_hash,
            },
        )
        self._has_joined = True
        if self._scaled_at not in (-1, scaled_at):
            self._boots.reset()
        self._scaled_at = scaled_at

    async def leave(self) -> None:
        """Take this host off the list: nothing is started here any more."""
        await self._scope.store.hosts.forget(self._scope.pool, self._scope.master)


def _is_behind(schema: int) -> bool:
    return schema < SCHEMA_OLDEST


def _is_gone(before: HostRecord, scope: PoolScope) -> bool:
    """Tell whether the process that reported before is known to have ended, or was this one."""
    here = (scope.host.boot_id, scope.host.pid_ns)
    if (before.boot_id, before.pid_ns) != here:
        return False
    return before.pid == os.getpid() or start_time(before.pid) != before.start_time
