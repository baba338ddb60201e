"""Retries and starts that fail: their delays are kept in Redis, so that who waits for them may die meanwhile."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.master import Master
from support.wait import wait_until
from system.task_pools import POOL, settings

from agentpool import RetryPolicy
from agentpool.doctor import examine
from agentpool.errors import InvalidInput, TaskCancelled, TaskFailed, TaskTimedOut

NewMaster = Callable[..., Master]


async def _status(handle, status: str) -> bool:
    return (await handle.info())["status"] == status


async def _no_letters(pool) -> bool:
    return [letter async for letter in pool.dead_letters()] == []


@pytest.mark.parametrize("dies", ["worker", "master", "both"])
async def test_a_retry_comes_in_time_whoever_dies_before_it(new_master: NewMaster, tmp_path: Path, dies: str) -> None:
    master = new_master(settings()).start()
    times = tmp_path / "times"
    policy = RetryPolicy(attempts=3, delay=1.5, backoff=1.0, jitter=False)
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.submit("Flaky", {"attempt": 2, "path": str(times)}, retry=policy)
        await wait_until(lambda: _status(handle, "delayed"))
        info = await handle.info()
        assert (info["attempts"], info["crashes"]) == (1, 0)
        worker = (await pool.workers())[0]
        if dies != "worker":
            master.kill()
        if dies != "master":
            os.kill(worker.pid, signal.SIGKILL)
        if dies == "both":
            master.start()
        assert await handle.result(10) == 2, "ctx.attempt"
        assert handle.attempts == 2
        first, second = (float(line.split()[1]) for line in times.read_text().splitlines())
        # A master that starts anew has to become the leader first, whose lease here is 2 s.
        assert 1.4 < second - first < {"worker": 2.5, "master": 2.5, "both": 7}[dies]
        if dies == "master":
            master.start()
        assert await _no_letters(pool)
        assert await examine(client.store) == []


async def test_how_often_is_said_by_the_task_its_class_or_the_pool(new_master: NewMaster) -> None:
    master = new_master(settings(retry_attempts=3, retry_delay=0.05)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        assert await pool.run("Flaky", {"attempt": 3}) == 3
        with pytest.raises(TaskFailed, match="not yet: attempt 3"):
            await pool.run("Flaky", {"attempt": 4})
        assert await pool.run("Patient", {"attempt": 2}) == 2
        with pytest.raises(TaskFailed, match="not yet: attempt 2"):
            await pool.run("Patient", {"attempt": 3})
        assert await pool.run("Patient", {"attempt": 4}, retry=RetryPolicy(attempts=4, delay=0.02)) == 4
        only = RetryPolicy(attempts=5, delay=0.02, on=("ValueError",))
        with pytest.raises(TaskFailed, match="not yet: attempt 1"):
            await pool.run("Flaky", {"attempt": 2}, retry=only)
        assert await pool.run("Flaky", {"attempt": 2}, retry=RetryPolicy(delay=0.02, on=("Exception",))) == 2
        agent = await pool.spawn("Flaky")
        assert await agent.run({"attempt": 3}) == 3, "of pinned agents, too"
        letters = [letter async for letter in pool.dead_letters()]
        assert [letter.attempts for letter in letters] == [3, 2, 1]
        assert sorted(letters[0].errors) == ["1", "2", "3"]
        assert await examine(client.store) == []


async def test_what_is_not_tried_again(new_master: NewMaster) -> None:
    master = new_master(settings(retry_attempts=3, retry_delay=0.05)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        with pytest.raises(InvalidInput):
            await pool.run("LateStarter", {"no": "JSON"}, timeout=-1)
        with pytest.raises(TaskTimedOut):
            await pool.run("Napper", 60, timeout=0.2)
        handle = await pool.submit("Napper", 60)
        await wait_until(lambda: _status(handle, "leased"))
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(5)
        assert handle.attempts == 1
        late = await pool.submit("Flaky", {"attempt": 2}, retry=RetryPolicy(delay=30))
        await wait_until(lambda: _status(late, "delayed"))
        assert await late.cancel()
        with pytest.raises(TaskCancelled):
            await late.result(5)
        assert await _no_letters(pool)
        assert await examine(client.store) == []


async def test_a_task_waits_for_an_agent_that_cannot_start_yet(new_master: NewMaster) -> None:
    master = new_master(settings(boot_backoff=0.1, boot_failures_max=6)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        handle = await pool.submit("LateStarter", None)
        await wait_until(lambda: _status(handle, "delayed"))
        assert (await handle.info())["attempts"] == 0, "a start is no attempt"
        await asyncio.sleep(0.3)
        (master.folder / "licence").touch()
        assert await handle.result(10) == 1
        assert await examine(client.store) == []


async def test_starts_that_keep_failing_come_later_and_later_and_end_in_a_dead_letter(new_master: NewMaster) -> None:
    master = new_master(settings(boot_backoff=0.2, boot_failures_max=4)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        began = time.monotonic()
        handle = await pool.submit("LateStarter", None)
        with pytest.raises(TaskFailed, match="no licence found"):
            await handle.result(20)
        assert time.monotonic() - began > 0.2 + 0.4 + 0.8
        letter = await pool.dead_letter(handle.id)
        assert letter.kind == "failed"
        assert b"no licence found" in bytes(letter.outcome)
        (master.folder / "licence").touch()
        assert await (await pool.replay(handle.id)).result(10) == 1
        assert await _no_letters(pool)
        assert await examine(client.store) == []
