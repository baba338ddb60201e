"""Connecting: which Redis, opened once, closed once."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

from agentpool.client.agents import AgentHandle
from agentpool.client.cleanup import Cleanup
from agentpool.client.pool import Pool
from agentpool.client.replies import Replies
from agentpool.errors import ConfigError, InvalidInput, PoolClosed, RedisUnavailable, UnknownPool
from agentpool.protocol.events import Event
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import PoolInfo, PoolStats
from agentpool.store import Store

__all__ = ["Client", "RedisClient", "connect"]

OPEN_TIMEOUT = 1.5
"""Seconds in which a server must answer when a client opens: long enough for one that restarts."""

Place = str | Path


def connect(url: str | None = None, *, data_dir: Place | None = None, config: Place | None = None) -> "Client":
    """Return a client, for `async with` or `open()` and `close()`; looks up the server when it is opened."""
    return Client(url, data_dir=data_dir, config=config)


class Client:
    """Everything that can be asked of an installation. Belongs to one event loop."""

    def __init__(self, url: str | None = None, *, data_dir: Place | None = None, config: Place | None = None) -> None:
        self._target = (url, data_dir, config)
        self._store: Store | None = None
        self._replies: Replies | None = None
        self.cleanup = Cleanup()

    async def __aenter__(self) -> "Client":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Find the server and connect; raises `RedisUnavailable` or `ConfigError`. May be called twice."""
        if self._store is not None:
            return
        store = await asyncio.to_thread(_find_store, *self._target)
        try:
            await store.connection.repeat(store.connection.redis.ping, OPEN_TIMEOUT)
        except BaseException:
            await store.close()
            raise
        self._store = store

    async def close(self) -> None:
        """Let go of the server; may be called twice. Agents and tasks go on."""
        await self._let_go()
        store, self._store = self._store, None
        if store:
            await store.close()

    async def _let_go(self) -> None:
        await self.cleanup.close()
        replies, self._replies = self._replies, None
        if replies:
            await replies.close()

    @property
    def store(self) -> Store:
        """The door to Redis; raises `PoolClosed` before `open()` and after `close()`."""
        if self._store is None:
            raise PoolClosed("This client is not open. Use it within `async with connect() as client:`.")
        return self._store

    @property
    def replies(self) -> Replies:
        """How answers come back; it begins to listen when something waits."""
        if self._replies is None:
            self._replies = Replies(self.store)
        return self._replies

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

    async def pools(self) -> list[PoolInfo]:
        """Return all pools with their settings as applied, in the order of their names."""
        infos = [await self._quiet(self.pool(name).info()) for name in await self.store.pools.names()]
        return [info for info in infos if info]

    async def stats(self) -> list[PoolStats]:
        """Return all pools in numbers, in the order of their names."""
        stats = [await self._quiet(self.pool(name).stats()) for name in await self.store.pools.names()]
        return [one for one in stats if one]

    async def drain(self, worker_id: str) -> None:
        """Have a worker of any pool finish what it runs, hand its agents over and leave."""
        pool = await self.store.workers.pool_of(worker_id)
        await self.pool(pool).drain(worker_id)

    async def events(self, *, follow: bool = False, limit: int = 200) -> AsyncIterator[Event]:
        """Yield the latest events of all pools by time; with `follow`, those from now on, for ever."""
        names = await self.store.pools.names()
        if follow:
            async for event in self.store.events.follow(names):
                yield event
            return
        events = [event for name in names for event in await self.store.events.read(name, limit)]
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

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    async def close(self) -> None:
        """Stop listening; the store stays open. May be called twice."""
        await self._let_go()


def _find_store(url: str | None, data_dir: Place | None, config: Place | None) -> Store:
    """Return a store on the server that is meant, unconnected; reads files, so it runs in a thread."""
    from agentpool.config import load_client_target

    _refuse_local(url)
    target = load_client_target(url=url, data_dir=data_dir, config=config, environ=os.environ)
    _refuse_local(target.url)
    return Store.open(target.url or _embedded_url(target.data_dir), namespace=target.namespace)


def _refuse_local(url: str | None) -> None:
    if url and url.startswith("local:"):
        raise ConfigError("local:// pools are not in this release. Start agentpool-master and connect to its Redis.")


def _embedded_url(data_dir: str) -> str:
    from agentpool.redis_server import running_url

    url = running_url(data_dir)
    if url is None:
        raise RedisUnavailable(
            f"No Redis server runs for {data_dir}. Start one with agentpool-master, or give a URL: --redis-url, "
            "REDIS_URL, or connect(url)."
        )
    return url
