"""Pools that come with a reload."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.master import APPS
from support.seeds import new_store

from agentpool.config import PoolSettings, Settings
from agentpool.errors import RedisUnavailable
from agentpool.master.host import Host
from agentpool.master.supervisor import Supervisor
from agentpool.store.locks import Lead


async def test_a_pool_that_could_not_start_is_started_by_the_next_reload(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PoolSettings(agents=("sample_agents:Echo",), min_workers=0)
    before = Settings(data_dir=str(tmp_path), app_dir=str(APPS), pools={"first": pool})
    after = Settings(data_dir=str(tmp_path), app_dir=str(APPS), pools={"first": pool, "p": pool})

    async with new_store(redis_url) as store:
        lead = store.locks.lead

        async def is_away(pool: str, *args: Any, **named: Any) -> Lead:
            if pool == "p":
                raise RedisUnavailable("it is away")
            return await lead(pool, *args, **named)

        supervisor = Supervisor(store, Host.find(tmp_path, "h1"), before, asyncio.Event())
        await supervisor.open()
        await supervisor.start()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(store.locks, "lead", is_away)
                (problem,) = await supervisor.apply(after)
            assert "it is away" in problem
            assert [*supervisor.keepers] == ["first"]
            assert await supervisor.apply(after) == []
            assert await store.locks.leader("p") == supervisor.keepers["p"].scope.master
        finally:
            await supervisor.stop()
