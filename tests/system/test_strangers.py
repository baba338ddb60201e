"""What others write into our Redis: clear words, and nothing of ours breaks."""

import asyncio
import signal
from collections.abc import Callable

import pytest
import redis
from support.master import Master
from support.wait import wait_until

from agentpool.doctor import examine
from agentpool.errors import DamagedRecord

NewMaster = Callable[..., Master]
POOL = "developer_pool"


async def test_publications_that_are_no_text_end_no_subscription(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.spawn("Echo")
        with redis.Redis.from_url(master.url) as stranger:
            channels = [name for name in stranger.pubsub_channels() if b"commands" in name or b":" in name]
            for channel in channels:
                stranger.publish(channel, b"\xff\xfe{")
                stranger.publish(channel, b'{"type": "drain", "process_id": "another"}')
            assert await handle.run(1) == 1
            assert sorted(stranger.pubsub_channels()) == sorted(channels)
        assert (await handle.info()).process_id in {worker.process_id for worker in await pool.workers()}


async def test_damaged_records_are_left_out_and_named_by_doctor(new_master: NewMaster) -> None:
    master = new_master().start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.spawn("Echo", id="good")
        with redis.Redis.from_url(master.url) as stranger:
            stranger.hset(f"agent:{POOL}/junk", mapping={"agent_id": f"{POOL}/junk", "incarnation": "abc"})
            stranger.hset(f"agent:{POOL}/bytes", "last_error", b"<\xff>")
            stranger.zadd(f"pool:{POOL}:pending", {"ghost": 1})
            await wait_until(lambda: stranger.zscore(f"pool:{POOL}:pending", "ghost") is None)
            assert [agent.agent_id for agent in await pool.agents()] == [handle.id]
            with pytest.raises(DamagedRecord, match="agentpool doctor"):
                await pool.agent("junk").info()
            assert {f"{POOL}/junk", f"{POOL}/bytes"} <= {violation.subject for violation in await examine(client.store)}
            await pool.agent("junk").terminate()
            await pool.agent("bytes").terminate()
        assert await handle.run(2) == 2


async def test_a_signal_ends_a_start_that_hangs(new_master: NewMaster) -> None:
    master = new_master()
    (master.folder / "slow_import.py").write_text("import time\n\ntime.sleep(60)\n")
    master.write_config({POOL: {"agents": ["slow_import:Echo"]}}, app_dir=str(master.folder))
    master.start(wait=False)
    await wait_until(lambda: master.logged("redis.started"))
    await asyncio.sleep(0.5)
    master.signal(signal.SIGTERM)
    assert master.process
    assert await asyncio.to_thread(master.process.wait, 8) == 0
    assert master.children() == []


async def test_removing_a_busy_pool_does_not_hold_up_the_master(new_master: NewMaster) -> None:
    busy = {"agents": ["sample_agents:Sleeper"], "drain_timeout": 60.0}
    master = new_master({POOL: {}, "busy_pool": busy}).start()
    async with master.client() as client:
        await client.pool("busy_pool").submit("Sleeper", 60)
        await wait_until(lambda: _running(client.pool("busy_pool")))
        master.write_config({POOL: {"max_workers": 7}})
        master.signal(signal.SIGHUP)
        await wait_until(lambda: master.logged("config.reloaded"), timeout=5)
        assert (await client.pool(POOL).info()).max_workers == 7
        master.write_config({POOL: {}, "busy_pool": busy})
        master.signal(signal.SIGHUP)
        await wait_until(lambda: master.logged("config.not_applied"), timeout=5)
        assert "still drains" in master.logged("config.not_applied")[0]["error"]
    master.signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    master.signal(signal.SIGTERM)
    assert master.process
    assert await asyncio.to_thread(master.process.wait, 8) == 0
    assert master.children() == []


async def _running(pool) -> bool:
    return (await pool.stats()).running_tasks == 1


async def test_the_password_of_the_embedded_server_is_not_logged(new_master: NewMaster) -> None:
    master = new_master(redis={"port": 17399})
    master.start()
    password = (master.data_dir / "redis.password").read_text().strip()
    assert len(password) > 10
    assert password not in master.output()
