"""`agentpool-master upgrade`: asks the master of this host for it, and waits until the last worker is replaced."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agentpool.clock import monotonic
from agentpool.config import Settings
from agentpool.daemon import master_of
from agentpool.errors import AgentPoolError, ConfigError, RedisUnavailable
from agentpool.master.host import Host
from agentpool.policy.renewal import is_outdated
from agentpool.protocol.records import HostRecord
from agentpool.redis_server import running_url
from agentpool.store import Store

__all__ = ["Done", "print_done", "upgrade_master"]

POLL = 0.1
START_TIMEOUT = 180.0
"""Seconds for the check of what is installed, and for the start."""


class UpgradeFailed(AgentPoolError):
    """The master did not do it, or not in time; what runs goes on."""

    code = "UPGRADE_FAILED"


class Done(msgspec.Struct):
    """What came of it."""

    master: str
    pools: list[str]
    release_before: str
    release: str
    workers: int
    """Workers that were replaced."""
    seconds: float


async def upgrade_master(settings: Settings, timeout: float, *, quiet: bool = False) -> Done:
    """Upgrade the master that holds the data directory, wait for its workers, and return what was done."""
    data_dir = Path(settings.data_dir)
    pid = master_of(data_dir)
    if not pid:
        raise ConfigError(
            f"No agentpool-master runs on {data_dir}, so there is none to upgrade. Start agentpool-master."
        )
    url = settings.redis.url or running_url(settings.data_dir)
    if url is None:
        raise RedisUnavailable(f"No Redis server runs for {data_dir}. Look at the log of agentpool-master.")
    store = Store.open(url, namespace=settings.redis.namespace)
    try:
        return await _Upgrade(store, Host.find(data_dir, settings.host_id).master_id, pid, quiet=quiet).run(timeout)
    finally:
        await store.close()


class _Upgrade:
    def __init__(self, store: Store, master: str, pid: int, *, quiet: bool) -> None:
        self._store, self._master, self._pid, self._quiet = store, master, pid, quiet

    async def run(self, timeout: float) -> Done:
        began = monotonic()
        before = await self._hosts()
        if not before:
            raise UpgradeFailed(f"The master {self._master} reports no pool. Look at its log.")
        for pool in before:
            await self._store.hosts.mark(pool, self._master, upgrade="asked for")
        workers = await self._outdated(before, all_of_them=True)
        os.kill(self._pid, signal.SIGUSR2)
        await self._succeeded(before, began + min(timeout, START_TIMEOUT))
        after = await self._hosts()
        left = told = len(workers)
        while left := len(await self._outdated(after)):
            if monotonic() - began > timeout:
                raise UpgradeFailed(
                    f"{left} of {len(workers)} workers are not replaced after {timeout:g} s; it goes on. "
                    "Look: agentpool workers, agentpool events"
                )
            if left != told and not self._quiet:
                print(f"{len(workers) - left} of {len(workers)} workers are replaced", file=sys.stderr, flush=True)
            told = left
            await asyncio.sleep(POLL)
            after = await self._hosts() or after
        return Done(
            master=self._master,
            pools=sorted(after),
            release_before=next(iter(before.values())).release,
            release=next(iter(after.values())).release,
            workers=len(workers),
            seconds=round(monotonic() - began, 1),
        )

    async def _hosts(self) -> dict[str, HostRecord]:
        """What the master reports, by pool."""
        names = await self._store.pools.names()
        found = {name: await self._store.hosts.one(name, self._master) for name in names}
        return {name: host for name, host in found.items() if host}

    async def _succeeded(self, before: Mapping[str, HostRecord], deadline: float) -> None:
        """Wait until another process reports in every pool."""
        while True:
            now = await self._hosts()
            waiting = [pool for pool, host in before.items() if pool in now and now[pool].session == host.session]
            if not waiting:
                return
            state = now[waiting[0]].upgrade
            if state.startswith("refused: "):
                raise UpgradeFailed(f"The master goes on as it was, for what is installed now cannot run: {state[9:]}")
            if not _lives(self._pid):
                raise UpgradeFailed("The master ended. Its workers go on; start agentpool-master, which adopts them.")
            if monotonic() > deadline:
                raise UpgradeFailed(f"The master did not come back in time ({state}). Look at its log.")
            await asyncio.sleep(POLL)

    async def _outdated(self, hosts: Mapping[str, HostRecord], *, all_of_them: bool = False) -> list[str]:
        found = []
        for pool, host in hosts.items():
            mine = [worker for worker in await self._store.workers.all(pool) if worker.master == self._master]
            found += [worker.process_id for worker in mine if all_of_them or is_outdated(worker, host)]
        return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def print_done(done: Done, *, as_json: bool) -> None:
    """Print what was done to stdout."""
    if as_json:
        print(json.dumps(msgspec.to_builtins(done)))
        return
    which = f"{done.release_before} to {done.release}" if done.release_before != done.release else done.release
    print(f"{done.master}: {which}, {done.workers} worker(s) replaced in {done.seconds:g} s")
