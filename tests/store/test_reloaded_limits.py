"""A reload applies the limits of tenants at once, also to those that are held by the earlier ones."""

import asyncio
from typing import Any

import msgspec
from support.tiny_pool import POOL, SETTINGS, TinyPool, tiny_pool
from support.wait import wait_until

from agentpool.config import PoolSettings, Settings
from agentpool.config.settings import TenantOverrides
from agentpool.master.scope import PoolScope
from agentpool.protocol.codec import new_id
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.tasks import TaskEnvelope, TaskHeader

ECHO = [TypeInfo(name="Echo", module="tests")]


def applied(**tenants: TenantOverrides) -> dict[str, object]:
    """What a master writes for a configuration with these tenants."""
    settings = PoolSettings(agents=("tests:Echo",), tenant_running=1, tenants=tenants)
    scope = PoolScope(None, POOL, None, Settings(pools={POOL: settings}), "")  # type: ignore[arg-type]
    return {**scope.applied(), **SETTINGS}


async def submit(tiny: TinyPool, tenant: str) -> None:
    envelope = TaskEnvelope(msgspec.Raw(b"1"))
    await tiny.store.tasks.submit(f"{POOL}/{new_id()}", TaskHeader("", "", "Echo", tenant), envelope)


async def running(tiny: TinyPool, tenant: str) -> int:
    return (await tiny.store.tenants.usage(POOL, tenant)).running


async def test_a_held_tenant_goes_on_when_its_limit_is_raised(redis_url: str) -> None:
    async def wait(_: Any) -> None:
        await asyncio.sleep(60)

    async with tiny_pool(redis_url, POOL) as tiny:
        await tiny.store.pools.apply(POOL, tiny.token, ECHO, applied(acme=TenantOverrides(running=2)))
        await tiny.add_worker(handler=wait)
        for _ in range(4):
            await submit(tiny, "acme")
            await submit(tiny, "other")

        async def count(acme: int, other: int) -> bool:
            return (await running(tiny, "acme"), await running(tiny, "other")) == (acme, other)

        async def held() -> bool:
            return (await tiny.store.tenants.usage(POOL, "acme")).held

        await wait_until(lambda: count(2, 1))
        await wait_until(held)
        await tiny.store.pools.apply(POOL, tiny.token, ECHO, applied(acme=TenantOverrides(running=3)))
        await wait_until(lambda: count(3, 1))
        await tiny.store.pools.apply(POOL, tiny.token, ECHO, applied(other=TenantOverrides(running=0)))
        await wait_until(lambda: count(3, 4))
        usage = await tiny.store.tenants.usage(POOL, "acme")
        assert usage.limits.running == 1, "it has no table any more"
