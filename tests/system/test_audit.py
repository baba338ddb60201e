"""The audit: every execution is on disk once, and nothing is forgotten in Redis before."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from support.master import Master
from support.wait import wait_until
from system.task_pools import POOL, audit_lines, settings

from agentpool import RetryPolicy
from agentpool.errors import AgentPoolError

NewMaster = Callable[..., Master]


async def test_every_execution_is_on_disk_once_and_forgotten_in_redis(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handles = await pool.submit_many("Napper", [0.0] * 150, tenant="acme", project="x")
        flaky = await pool.submit("Flaky", {"attempt": 2}, retry=RetryPolicy(delay=0.05))
        dead = await pool.submit("Flaky", {"attempt": 9}, retry=RetryPolicy(attempts=1))
        spender, refused = await pool.submit("Spender", 7), await pool.submit("Spender", "much")
        expired = await pool.submit("Napper", 0, delay=5, expires=0.1)
        for handle in (*handles, flaky, dead, spender, refused, expired):
            try:
                await handle.result(20)
            except AgentPoolError:
                assert handle in (dead, refused, expired)
        await wait_until(lambda: len(audit_lines(master)) >= 156, timeout=5)
        with redis.Redis.from_url(master.url) as cli:
            await wait_until(lambda: cli.xlen(f"pool:{POOL}:audit") == 0)
        lines = audit_lines(master)
        assert len(lines) == 156
        statuses = Counter((line["task_id"], line["status"]) for line in lines)
        assert all(statuses[handle.id, "succeeded"] == 1 for handle in handles)
        assert (statuses[flaky.id, "retried"], statuses[flaky.id, "succeeded"]) == (1, 1)
        assert (statuses[dead.id, "failed"], statuses[expired.id, "expired"]) == (1, 1)
        first = next(line for line in lines if line["task_id"] == handles[0].id)
        assert (first["tenant"], first["project"], first["agent_type"]) == ("acme", "x", "Napper")
        assert first["process_id"] in {worker.process_id for worker in await pool.workers()}
        assert not any("input" in line or "result" in line for line in lines), "only with audit_payload"
        assert next(line for line in lines if line["task_id"] == spender.id)["tokens"] == 7
        line = next(line for line in lines if line["task_id"] == refused.id)
        assert (line["status"], line.get("attempt", 0)) == ("invalid_input", 0), "its run() was never called"
        assert "not yet" in next(line for line in lines if line["task_id"] == dead.id)["error"]


async def test_what_was_not_written_stays_in_redis(new_master: NewMaster) -> None:
    master = new_master(settings(audit_payload=True)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.submit("Spender", 3)
        await handle.result(5)
        await wait_until(lambda: len(audit_lines(master)) == 1, timeout=5)
        line = audit_lines(master)[0]
        assert (line["input"], line["result"]) == (3, 3)
        folder = master.data_dir / "audit" / POOL
        master.signal(signal.SIGSTOP)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.write_text("in the way")
        await pool.run("Spender", 4)
        master.signal(signal.SIGCONT)
        await wait_until(lambda: master.logged("audit.not_written"), timeout=5)
        with redis.Redis.from_url(master.url) as cli:
            assert cli.xlen(f"pool:{POOL}:audit") == 1
            folder.unlink()
            await wait_until(lambda: cli.xlen(f"pool:{POOL}:audit") == 0, timeout=5)
        assert [line["input"] for line in audit_lines(master)] == [4]


async def test_the_next_leader_goes_on_where_a_killed_one_was(new_master: NewMaster) -> None:
    master = new_master(settings()).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        running = [asyncio.create_task(pool.run("Napper", 0.001)) for _ in range(300)]
        await asyncio.sleep(0.2)
        master.kill()
        await asyncio.gather(*running)
        master.start()
        with redis.Redis.from_url(master.url) as cli:
            await wait_until(lambda: cli.xlen(f"pool:{POOL}:audit") == 0, timeout=10)
        assert len({line["task_id"] for line in audit_lines(master)}) == 300, "none is missing"


async def test_full_files_are_closed_and_the_oldest_go(new_master: NewMaster) -> None:
    master = new_master(settings(audit_payload=True, audit_file_mb=0.01, audit_files=3)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        for n in range(6):
            await pool.run("Spender", n)
            await pool.submit_many("Emitter", [0] * 60)
            await asyncio.sleep(1.2)
        files = sorted((master.data_dir / "audit" / POOL).glob("*.jsonl"))
        assert 3 <= len(files) <= 4, "three that are full, and the one that is written"
        assert all(file.stat().st_size >= 10_000 for file in files[:3])
        lines = audit_lines(master)
        assert lines[-1]["agent_type"] == "Emitter"
        assert not any(line.get("input") == 0 and line["agent_type"] == "Spender" for line in lines), (
            "the oldest is gone"
        )


async def test_without_an_audit_nothing_is_written(new_master: NewMaster) -> None:
    master = new_master(settings(audit=False)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        running = await pool.submit_many("Napper", [0.5] * 3)
        await wait_until(lambda: _running(pool, 3))
        os.kill((await pool.workers())[0].pid, signal.SIGKILL)
        for handle in running:
            await handle.result(10)
        with pytest.raises(AgentPoolError):
            await (await pool.submit("Napper", 0, delay=5, expires=0.1)).result(5)
        with redis.Redis.from_url(master.url) as cli:
            assert cli.xlen(f"pool:{POOL}:audit") == 0
        assert not Path(master.data_dir / "audit" / POOL).exists()


async def _running(pool, count: int) -> bool:
    return (await pool.stats()).running_tasks == count
