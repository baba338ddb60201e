"""Shares of tenants in slot time. The long forms (`make soak`) have as many tasks as the promise speaks of."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Mapping

import pytest
from support.master import Master
from support.wait import wait_until
from system.task_pools import POOL, audit_lines, settings

NewMaster = Callable[..., Master]
LONGEST = 0.6
"""More than the longest task takes."""
SECONDS = float(os.environ.get("FAIRNESS_SECONDS", "5"))


async def _ready(pool, count: int) -> bool:
    return (await pool.stats()).active_worker_processes == count


async def _shares(master: Master, began: float, ended: float) -> dict[str, float]:
    """Slot seconds of each tenant between two times, from the audit."""
    # What ran at the end has ended by then, and every line is written within about a second.
    await asyncio.sleep(max(0.0, ended + LONGEST - time.time()))
    now = 1000 * time.time()
    await wait_until(lambda: audit_lines(master)[-1]["at"] > now, timeout=5, interval=0.2)
    shares: dict[str, float] = {}
    for line in audit_lines(master):
        until = line["at"] / 1000
        since = until - line["duration_ms"] / 1000
        seconds = min(until, ended) - max(since, began)
        if seconds > 0:
            shares[line["tenant"]] = shares.get(line["tenant"], 0.0) + seconds
    return shares


async def _saturate(pool, durations: Mapping[str, float], seconds: float, slots: int, type: str = "Napper") -> None:
    """Give each tenant tasks for so many seconds on half as many slots again as are its share; few long ones first."""
    for tenant, duration in reversed(durations.items()):
        count = int(seconds * slots / len(durations) * 1.5 / duration) + slots
        await pool.submit_many(type, [duration] * count, tenant=tenant)


def jain(shares: list[float]) -> float:
    """Jain's index of fairness: 1 when all have the same."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


@pytest.mark.parametrize("type", ["Napper", "Shared"])
async def test_tenants_whose_tasks_differ_hundredfold_get_the_same_slot_time(new_master: NewMaster, type: str) -> None:
    master = new_master(settings(min_workers=2, max_workers=2, tenant_running=0)).start()
    durations = {f"t{n:02}": 0.005 * 100 ** (n / 19) for n in range(20)}
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        # Before anything is known of a tenant its tasks count as short; what that gave it too much is paid back later.
        await asyncio.gather(*(pool.run(type, duration, tenant=tenant) for tenant, duration in durations.items()))
        await _saturate(pool, durations, SECONDS + 4, 20, type)
        began = time.time() + 0.5
        shares = await _shares(master, began, began + SECONDS)
    master.kill()  # doctor would look at thousands of tasks
    assert len(shares) == 20
    index = jain(list(shares.values()))
    assert index >= 0.98, f"{index} {[round(share, 2) for _, share in sorted(shares.items())]}"


async def test_shares_follow_weights(new_master: NewMaster) -> None:
    master = new_master(settings(min_workers=2, max_workers=2, tenant_running=0, agents_per_worker=14)).start()
    weights = {"one": 1.0, "two": 2.0, "four": 4.0}
    async with master.client() as client:
        pool = client.pool(POOL)
        await wait_until(lambda: _ready(pool, 2))
        for tenant, weight in weights.items():
            await pool.limit_tenant(tenant, weight=weight)
        await _saturate(pool, dict.fromkeys(weights, 0.05), SECONDS + 8, 28)
        began = time.time() + 0.5
        shares = await _shares(master, began, began + SECONDS)
    total = sum(shares.values())
    for tenant, weight in weights.items():
        assert shares[tenant] / total == pytest.approx(weight / 7, rel=0.05), shares


async def test_leaving_and_returning_gains_nothing(new_master: NewMaster) -> None:
    master = new_master(settings(min_workers=1, max_workers=1, tenant_running=0)).start()
    async with master.client() as client:
        pool = client.pool(POOL)
        await _saturate(pool, {"stays": 0.02}, 10, 10)
        await pool.submit_many("Napper", [0.02] * 400, tenant="returns")
        await asyncio.sleep(4)
        assert (await pool.tenant("returns")).queued == 0, "it is away"
        back = time.time()
        await pool.submit_many("Napper", [0.02] * 2500, tenant="returns", expires=5)
        shares = await _shares(master, back + 0.1, back + 2.6)
    assert shares["returns"] / sum(shares.values()) == pytest.approx(0.5, abs=0.04), shares


@pytest.mark.parametrize("tasks", [3000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_a_flood_of_one_tenant_hardly_delays_another(new_master: NewMaster, tasks: int) -> None:
    master = new_master(settings(min_workers=1, max_workers=1, tenant_running=0)).start()
    mean = 0.05
    async with master.client() as client:
        pool = client.pool(POOL)
        await pool.run("Napper", mean, tenant="calm")
        alone = await _waits(pool, 20, mean)
        await pool.submit_many("Napper", [mean] * tasks, tenant="flood")
        await asyncio.sleep(0.3)
        flooded = await _waits(pool, 40, mean)
        assert (await pool.tenant("flood")).queued > 100, "the flood went on"
    assert statistics.mean(flooded) <= statistics.mean(alone) + 2 * mean, (alone, flooded)
    assert statistics.quantiles(flooded, n=10)[-1] <= max(alone) + 2 * mean, (alone, flooded)


async def _waits(pool, count: int, mean: float) -> list[float]:
    """How long tasks of a tenant that has one at a time wait before they begin."""
    waits = []
    for _ in range(count):
        handed_in = time.time()
        waits.append((await pool.run("Napper", mean, tenant="calm"))["began"] - handed_in)
    return waits
