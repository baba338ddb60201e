"""A pool in which everything fits together, and a doctor that does not wait long between two looks."""

from collections.abc import AsyncIterator

import pytest
from support.healthy import healthy_pool
from support.tiny_pool import TinyPool


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentpool.doctor.examining.PAUSE_S", 0.02)


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[TinyPool]:
    async with healthy_pool(redis_url) as pool:
        yield pool
