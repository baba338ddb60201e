"""Connecting: which backend, opened once, closed once."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agentpool.client.agents import AgentHandle
from agentpool.client.backend import Backend
from agentpool.client.choice import LOCAL_URL, LocalPools, is_local, uses_processes
from agentpool.client.cleanup import Cleanup
from agentpool.client.kinds import check_count
from agentpool.client.pool import Pool
from agentpool.client.tasks import TaskHandle
from agentpool.errors import ConfigError, InvalidInput, PoolClosed, RedisUnavailable, UnknownPool
from agentpool.protocol.events import Event
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import PoolInfo, PoolStats

if TYPE_CHECKING:
    from agentpool.client.redis_backend import RedisBackend
    from agentpool.store import Store

__all__ = ["Client", "RedisClient", "connect"]

Place = str | Path


def connect(
    url: str | None = None,
    *,
    data_dir: Place | None = None,
    config: Place | None = None,
    pools: LocalPools | None = None,
) -> "Client":
    """Return a client, for `async with` or `open()` and `close()`; looks up the server when it is opened.

    `local://`, or USE_MULTIPROCESSING=false in the environment whatever the URL, has pools inside this process: those
    of the configuration file, or `pools` (classes by pool), which are not looked at otherwise.
    """
    if not uses_processes(os.environ):
        url = LOCAL_URL
    return Client(url, data_dir=data_dir, config=config, pools=pools)


class Client:
    """Everything that can be asked of an installation. Belongs to one event loop."""

    def __init__(
        self,
        url: str | None = None,
        *,
        data_dir: Place | None = None,
        config: Place | None = None,
        pools: LocalPools | None = None,
    ) -> None:
        self._target = (url, data_dir, config, pools)
        self._backend: Backend | None = None
        self.cleanup = Cleanup()
        """What goes on when its caller was cancelled."""

    async def __aenter__(self) -> "Client":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Find the server and connect, or begin local pools; raises `RedisUnavailable` or `ConfigError`. May be called
        twice.
        """
        if self._backend is not None:
            return
        url, data_dir, config, pools = self._target
        backend: Backend
        if is_local(url):
            # Not in a thread, as modules of agents expect to be imported in the main one.
            from agentpool.client.local import find_local_pools

            backend = find_local_pools(config, pools)
        else:
            backend = await asyncio.to_thread(_find_redis, url, data_dir, config, self.cleanup)
        try:
            await backend.open()
        except BaseException:
            await backend.close()
            raise
        self._backend = backend

    async def close(self) -> None:
        """Let go of the server, whose agents and tasks go on; local pools end. May be called twice.

        Callers that still wait get `PoolClosed`, or the outcome of what ends with the client.
        """
        await self.cleanup.close()
        if backend := self._backend:
            await backend.close()
            self._backend = None  # not before: a close that was cancelled may be repeated

    @property
    def backend(self) -> Backend:
        """What carries requests out; raises `PoolClosed` before `open()` and after `close()`."""
        if self._backend is None:
            raise PoolClosed("This client is not open. Use it within `async with connect() as client:`.")
        return self._backend

    @property
    def store(self) -> "Store":
        """The door to Redis, for what is about Redis itself; raises `ConfigError` without one, and `PoolClosed`."""
        return self._on_redis.store

    @property
    def data_dir(self) -> str:
        """The data directory of this host that goes with the server, whether there is a master on it or not."""
        return self._on_redis.data_dir

    @property
    def _on_redis(self) -> "RedisBackend":
        backend = self.backend
        from agentpool.client.redis_backend import RedisBackend

        if not isinstance(backend, RedisBackend):
            raise ConfigError(
                "`agentpool doctor`, `agentpool redis` and `client.store` need Redis, and this client is not on one. "
                "Start agentpool-master and give its Redis: --redis-url, REDIS_URL, or connect(url)."
            )
        return backend

    def pool(self, name: str) -> Pool:
        """Return a pool by name, without I/O; raises `InvalidInput` for what cannot be a name."""
        return Pool(self, name)

    def agent(self, agent_id: str) -> AgentHandle:
        """Return a handle of an agent by its full id, without I/O."""
        pool, _ = split_id(agent_id)
        if not pool:
            raise InvalidInput(
                f"{agent_id!r} is no agent id: ids are <pool>/<name>. List them: agentpool agents", "$.id"
            )
        return self.pool(pool).agent(agent_id)

    def task(self, task_id: str) -> TaskHandle:
        """Return a handle of a task by its id, without I/O."""
        pool, _ = split_id(task_id)
        if not pool:
            raise InvalidInput(f"{task_id!r} is no task id: ids are <pool>/<id>.", "$.id")
        return self.pool(pool).task(task_id)

    async def pools(self) -> list[PoolInfo]:
        """Return all pools with their settings as applied, in the order of their names."""
        infos = [await self._quiet(self.pool(name).info()) for name in await self.backend.pool_names()]
        return [info for info in infos if info]

    async def stats(self) -> list[PoolStats]:
        """Return all pools in numbers, in the order of their names."""
        stats = [await self._quiet(self.pool(name).stats()) for name in await self.backend.pool_names()]
        return [one for one in stats if one]

    async def drain(self, worker_id: str) -> None:
        """Have a worker of any pool finish what it runs, hand its agents over and leave."""
        pool = await self.backend.pool_of(worker_id)
        await self.pool(pool).drain(worker_id)

    async def events(self, *, follow: bool = False, limit: int = 200) -> AsyncGenerator[Event, None]:
        """Yield the latest events of all pools, `limit` at most, by time; with `follow`, those from now on, as they
        come, until this is closed.
        """
        check_count("limit", limit)
        names = await self.backend.pool_names()
        if follow:
            async with contextlib.aclosing(self.backend.follow(names)) as following:
                async for event in following:
                    yield event
            return
        events = [event for name in names for event in await self.backend.events(name, limit)]
        for event in sorted(events, key=lambda event: event.at)[-limit:]:
            yield event

    @staticmethod
    async def _quiet(asked: Any) -> Any:
        """Await something of a pool that may be removed in this moment."""
        try:
            return await asked
        except UnknownPool:
            return None


class RedisClient(Client):
    """A client on a store that someone else opened and will close, like a worker's."""

    def __init__(self, store: "Store") -> None:
        super().__init__()
        from agentpool.client.redis_backend import RedisBackend

        self._redis = RedisBackend(store, self.cleanup, owns_store=False)
        self._backend = self._redis

    async def close(self) -> None:
        """Stop listening; the store stays open, and so does this client. May be called twice."""
        await self.cleanup.close()
        await self._redis.close()


def _find_redis(url: str | None, data_dir: Place | None, config: Place | None, cleanup: Cleanup) -> Backend:
    """Find the server, without asking it anything; reads files and imports redis-py, so it runs in a thread."""
    from agentpool.client.redis_backend import RedisBackend
    from agentpool.config import load_client_target
    from agentpool.store import Store

    target = load_client_target(url=url, data_dir=data_dir, config=config, environ=os.environ)
    store = Store.open(target.url or _embedded_url(target.data_dir), namespace=target.namespace)
    return RedisBackend(store, cleanup, data_dir=target.data_dir)


def _embedded_url(data_dir: str) -> str:
    from agentpool.redis_server import running_url

    url = running_url(data_dir)
    if url is None:
        raise RedisUnavailable(
            f"No Redis server runs for {data_dir}. Start one with agentpool-master, or give a URL: --redis-url, "
            "REDIS_URL, or connect(url)."
        )
    return url
