"""Pools in Redis: their settings as applied, what their leader decided, and their numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentpool.errors import UnknownPool
from agentpool.policy.stats import sum_up
from agentpool.protocol.codec import new_id
from agentpool.protocol.events import EventName
from agentpool.protocol.records import PoolInfo, PoolStats, PoolView, TypeInfo, WorkerRecord, decode_hash
from agentpool.protocol.refusals import refusal
from agentpool.store.connection import Connection
from agentpool.store.hosts import too_old
from agentpool.version import SCHEMA_OLDEST, SCHEMA_VERSION, __version__

__all__ = ["Pools"]


class Pools:
    """Doors to pools."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def install_id(self) -> str:
        """Return the id of this installation, made at first use."""
        return await self.keep_install_id(new_id())

    async def keep_install_id(self, install: str) -> str:
        """Write the id of this installation where there is none; returns the one that is there."""
        redis, key = self._connection.redis, self._keys.install()

        async def read() -> str:
            known = await redis.get(key)  # first, as a full server refuses to write even what it has
            if not known:
                await redis.set(key, install, nx=True)
                known = await redis.get(key)
            return str(known)

        return await self._connection.repeat(read)

    async def check_release(self, pools: Iterable[str] = (), *, timeout: float | None = None) -> None:
        """Raise `ConfigError` if this release is too old for one of these pools, or of all when none are named."""
        connection, keys = self._connection, self._keys
        names = tuple(pools) or sorted(await connection.ask("SMEMBERS", keys.pools(), timeout=timeout))
        if not names:
            return
        fields = ("schema_min", "release")
        found = await connection.ask_all([("HMGET", keys.pool(name), *fields) for name in names])
        for name, (oldest, release) in zip(names, found, strict=True):
            if int(oldest or 0) > SCHEMA_VERSION:
                raise too_old(name, oldest, release)

    async def names(self) -> list[str]:
        """Return the names of the pools, sorted."""
        return sorted(await self._connection.repeat(lambda: self._connection.redis.smembers(self._keys.pools())))

    async def info(self, pool: str) -> PoolInfo:
        """Return a pool as applied; raises `UnknownPool`."""
        fields = await self._fields(pool)
        if not fields.get("pool_name"):
            raise refusal(pool, pool, ["unknown_pool"])
        return decode_hash(PoolInfo, fields)

    async def _fields(self, pool: str) -> dict[str, str]:
        """Return the pool's hash, with the leader that holds the lock now: one that died cannot take itself out."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.hgetall(keys.pool(pool))
                pipe.get(keys.leader_lock(pool))
                result: list[Any] = await pipe.execute()
                return result

        fields, token = await self._connection.repeat(read)
        return {**fields, "leader": str(token or "").partition(" ")[2]}

    async def types(self, pool: str) -> list[TypeInfo]:
        """Return what the pool's agent types declare."""
        raw = await self._connection.repeat(lambda: self._connection.redis.hgetall(self._keys.types(pool)))
        return [msgspec.json.decode(value, type=TypeInfo) for _, value in sorted(raw.items())]

    async def apply(self, pool: str, token: str, types: Iterable[TypeInfo], settings: Mapping[str, object]) -> bool:
        """Write settings and types; False when the leader's token is no longer held."""
        types = tuple(types)
        pairs = [word for info in types for word in (info.name, msgspec.json.encode(info))]
        labels = {f"labels:{info.name}": "+".join(sorted(info.labels)) for info in types}
        exclusive = {f"exclusive:{info.name}": int(info.on_redis_loss == "stop") for info in types}
        values = {**settings, **labels, **exclusive, "release": __version__, "status": "active"}
        words = [word for pair in values.items() for word in pair]
        answer = await self._connection.call(
            "apply_pool", pool, token, SCHEMA_VERSION, SCHEMA_OLDEST, len(pairs) // 2, *pairs, *words
        )
        if answer[0] == "too_old":
            raise too_old(pool, answer[1], answer[2])
        if answer[0] == "ok":
            await self._connection.repeat(lambda: self._enter(pool))
        return bool(answer[0] == "ok")

    async def _enter(self, pool: str) -> None:
        redis, key = self._connection.redis, self._keys.pools()
        if not await redis.sismember(key, pool):  # a full server refuses to write even what it has
            await redis.sadd(key, pool)

    async def remove(self, pool: str, token: str) -> None:
        """Take a pool out of service: nothing can be placed in it until it is applied again."""
        if await self.update(pool, token, "status", "removed", EventName.POOL_REMOVED):
            await self._connection.repeat(lambda: self._connection.redis.srem(self._keys.pools(), pool))

    async def update(self, pool: str, token: str, field: str, value: object, event: str = "") -> bool:
        """Record one of the leader's decisions; False when its token is no longer held."""
        answer = await self._connection.call("update_pool", pool, token, field, value, event)
        return bool(answer[0] == "ok")

    async def scale(self, pool: str, workers: int) -> None:
        """Set floor and wanted size; raises `UnknownPool`, or `InvalidInput` outside the pool's bounds."""
        answer = await self._connection.call("scale_pool", pool, workers)
        if answer[0] != "ok":
            raise refusal(pool, pool, answer)

    async def observe(self, pool: str) -> PoolView:
        """Return the pool's numbers in one consistent read."""
        answer = await self._connection.call("observe_pool", pool)
        return PoolView(**dict(zip(PoolView.__struct_fields__, map(int, answer), strict=True)))

    async def demand(self, pool: str) -> dict[str, int]:
        """Return what waits for hosts with labels, by these, joined with `+`."""
        return {str(labels): int(count) for labels, count in await self._connection.call("observe_labels", pool)}

    async def stats(self, pool: str, workers: Iterable[WorkerRecord]) -> PoolStats:
        """Return the pool in numbers; raises `UnknownPool`."""
        fields = await self._fields(pool)
        if not fields.get("pool_name"):
            raise UnknownPool(pool, await self.names())
        timeout_ms = int(float(fields.get("heartbeat_timeout_ms") or 10_000))
        return sum_up(decode_hash(PoolInfo, fields), await self.observe(pool), list(workers), timeout_ms)
