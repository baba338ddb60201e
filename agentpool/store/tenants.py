"""Tenants in Redis: their limits as they stand, and what they use of them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from agentpool.protocol.limits import TenantLimits, TenantUsage, decode_limits, encode_limits
from agentpool.protocol.refusals import refusal
from agentpool.store.connection import Connection

__all__ = ["Tenants"]

WINDOW_S = 60


class Tenants:
    """Doors to tenants."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def limit(self, pool: str, tenant: str, limits: Mapping[str, float | None]) -> str:
        """Set limits live; None takes one back to what is configured. Returns all that are set live, as words."""
        key = self._keys.limits(pool)
        text = await self._connection.repeat(lambda: self._connection.redis.hget(key, tenant))
        live = {**decode_limits(text or ""), **limits}
        words = encode_limits({name: value for name, value in live.items() if value is not None})
        answer = await self._connection.call("limit_tenant", pool, tenant, words)
        if answer[0] != "ok":
            raise refusal(pool, pool, answer)
        return words

    async def names(self, pool: str) -> list[str]:
        """Return the tenants that have limits of their own, or that hold, run or wait for anything, sorted."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.hkeys(keys.limits(pool))
                pipe.smembers(keys.held(pool))
                pipe.zrange(keys.tenants(pool), 0, -1)
                pipe.smembers(keys.lanes(pool))
                result: list[Any] = await pipe.execute()
                return result

        limited, held, served, lanes = await self._connection.repeat(read)
        found = {name.removeprefix("=") for name in limited} | set(held) | set(served)
        for lane in lanes:
            turns = keys.turns(pool, lane)
            found.update(await self._connection.repeat(lambda key=turns: redis.zrange(key, 0, -1)))  # type: ignore[misc]
        found.update(await self._of_agents(pool))
        return sorted(found)

    async def _of_agents(self, pool: str) -> set[str]:
        """Return the tenants of the pool's pinned agents, which no index names."""
        from agentpool.store.agents import Agents

        return {record.tenant for record in await Agents(self._connection).all(pool)}

    async def usage(self, pool: str, tenant: str) -> TenantUsage:
        """Return what one tenant uses, and its limits."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            lanes = await redis.smembers(keys.lanes(pool))
            async with redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hmget(keys.pool(pool), "tenant_limits", "max_queued")
                pipe.hmget(keys.limits(pool), f"={tenant}", tenant)
                pipe.scard(keys.tenant_agents(pool, tenant))
                pipe.scard(keys.tenant_tasks(pool, tenant))
                pipe.scard(keys.tenant_waits(pool, tenant))
                pipe.hgetall(keys.tenant_tokens(pool, tenant))
                pipe.hgetall(keys.tenant_requests(pool, tenant))
                pipe.hget(keys.tenant_usage(pool, tenant), "ms")
                pipe.sismember(keys.held(pool), tenant)
                for lane in lanes:
                    pipe.zcard(keys.lane(pool, lane, tenant))
                result: list[Any] = await pipe.execute()
                return result

        answers = await self._connection.repeat(read)
        (seconds, _), (defaults, max_queued), (configured, live), *rest = answers
        agents, tasks, waits, tokens, requests, ms, held, *queued = rest
        words: dict[str, float] = {"queued": int(max_queued or 0)}
        for text in (defaults if tenant != "default" else "", configured, live):
            words.update(decode_limits(text or ""))
        return TenantUsage(
            tenant=tenant,
            agents=agents,
            running=tasks - waits,
            queued=sum(queued),
            tokens_last_minute=_last_minute(tokens, int(seconds)),
            requests_last_minute=_last_minute(requests, int(seconds)),
            mean_ms=round(float(ms or 0), 3),
            held=bool(held),
            limits=msgspec.convert(words, TenantLimits),
            set_live=live or "",
        )


def _last_minute(buckets: Mapping[str, str], second: int) -> int:
    return max(0, sum(int(count) for at, count in buckets.items() if int(at) > second - WINDOW_S))
