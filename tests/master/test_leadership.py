"""A turn at leading that is broken off."""

import asyncio
from pathlib import Path

from support.seeds import new_store, seed_pool

from agentpool.config import PoolSettings, Settings
from agentpool.master.host import Host
from agentpool.master.leadership import Leadership
from agentpool.master.scope import PoolScope
from agentpool.periodic import end_task


async def test_what_a_broken_off_turn_took_is_handed_over_at_once(redis_url: str, tmp_path: Path) -> None:
    is_elected = asyncio.Event()

    async def on_election(token: str) -> None:
        is_elected.set()
        await asyncio.sleep(60)

    async def on_restart(token: str) -> None: ...

    async with new_store(redis_url) as store:
        assert await store.locks.release("p", "leader", await seed_pool(store))
        root = Settings(data_dir=str(tmp_path), pools={"p": PoolSettings(agents=("a:B",))})
        scope = PoolScope(store, "p", Host.find(tmp_path, "h1"), root, "install")
        leadership = Leadership(scope, on_election, on_restart)
        turn = asyncio.create_task(leadership.lead_once())
        async with asyncio.timeout(10):
            await is_elected.wait()
        await end_task(turn)
        assert await store.locks.leader("p") == scope.master
        await leadership.resign()
        assert await store.locks.leader("p") == ""
        await leadership.resign()
        assert await store.locks.leader("p") == ""
