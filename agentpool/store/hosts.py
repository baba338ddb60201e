"""Hosts of a pool, as their masters see them, and start orders as masters take them."""

from collections.abc import Iterable, Mapping
from typing import Any

from agentpool.errors import ConfigError
from agentpool.protocol.records import HostRecord, HostsView, StartOrder, decode_hashes
from agentpool.protocol.states import WorkerStatus
from agentpool.store.connection import Connection
from agentpool.version import SCHEMA_VERSION, __version__

__all__ = ["ALIVE_MS", "Hosts", "too_old"]

ALIVE_MS = 3000
"""A master that has not beaten for so long is not counted on: it beats every second."""


def too_old(pool: str, oldest: object, release: object) -> ConfigError:
    """Return the error of a release that may not take part in a pool any more."""
    return ConfigError(
        f'Pool "{pool}" is kept by release {release} (schema {oldest} and later may take part), and this is release '
        f"{__version__} (schema {SCHEMA_VERSION}), which is too old. Install release {release} or a later one."
    )


class Hosts:
    """Doors to hosts."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def report(
        self,
        pool: str,
        master: str,
        session: str,
        *,
        host_id: str,
        labels: Iterable[str],
        fields: Mapping[str, object],
        replaces: str = "",
    ) -> int:
        """Say that a master lives and what room its host has; returns when the pool was last scaled, in ms.

        Raises `ConfigError` when this release is too old, or when another process beats under the same id;
        `replaces` is the session of one that is known to be gone.
        """
        identity = (master, session, replaces, ALIVE_MS, SCHEMA_VERSION, host_id, " ".join(sorted(labels)))
        words = [word for pair in fields.items() for word in pair]
        answer = await self._connection.call("report_host", pool, *identity, *words)
        match answer[0]:
            case "too_old":
                raise too_old(pool, answer[1], answer[2])
            case "taken":
                raise ConfigError(
                    f"Another agentpool-master, on host {answer[1]}, runs as {master}, and two need two identities. "
                    "Remove `host_id` from the data directory if that was copied, or give each its own `host_id`."
                )
        return int(answer[1])

    async def forget(self, pool: str, master: str, *, token: str = "", silent_ms: int = 0) -> bool:
        """Take a host off the list: its master itself, or with a token the leader, if it is silent for so long."""
        answer = await self._connection.call("forget_host", pool, master, token, silent_ms)
        return bool(answer[0] == "ok")

    async def view(self, pool: str) -> HostsView:
        """Return all hosts, in the order of their names, and what is ordered of them."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> HostsView:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.zrange(keys.hosts(pool), 0, -1)
                pipe.zrange(keys.starting(pool), 0, -1, withscores=True)
                (seconds, microseconds), masters, starting = await pipe.execute()
            async with redis.pipeline(transaction=False) as pipe:
                for master in masters:
                    pipe.hgetall(keys.host(pool, master))
                for worker, _ in starting:
                    pipe.hmget(keys.process(worker), "master", "status")
                rows: list[Any] = await pipe.execute() if masters or starting else []
            hosts = decode_hashes(HostRecord, rows[: len(masters)])
            named = zip(starting, rows[len(masters) :], strict=True)
            return HostsView(
                now_ms=seconds * 1000 + microseconds // 1000,
                hosts=tuple(sorted(hosts, key=lambda host: (host.host, host.master))),
                orders=tuple(
                    StartOrder(worker, master or "", int(at), is_begun=status != WorkerStatus.ORDERED)
                    for (worker, at), (master, status) in named
                ),
            )

        return await self._connection.repeat(read)

    async def one(self, pool: str, master: str) -> HostRecord | None:
        """Return one host, or None when it is not on the list."""
        key = self._keys.host(pool, master)
        rows = [await self._connection.repeat(lambda: self._connection.redis.hgetall(key))]
        return next(iter(decode_hashes(HostRecord, rows)), None)

    async def mark(self, pool: str, master: str, **fields: object) -> None:
        """Write fields beside those that the master reports."""
        key = self._keys.host(pool, master)
        await self._connection.repeat(lambda: self._connection.redis.hset(key, mapping=fields))

    async def take_order(self, pool: str, worker: str, master: str, secret: str) -> str:
        """Take an order with a new secret; returns ok, begun or gone."""
        return str((await self._connection.call("take_order", pool, worker, master, secret))[0])
