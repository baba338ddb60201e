"""A led pool without workers, and a client of its Redis; modules that need others define their own."""

from collections.abc import AsyncIterator

import pytest
from support.tiny_pool import TinyPool, tiny_pool

from agentpool import connect
from agentpool.client import Client


@pytest.fixture
async def tiny(redis_url: str) -> AsyncIterator[TinyPool]:
    async with tiny_pool(redis_url) as pool:
        yield pool


@pytest.fixture
async def client(redis_url: str, tiny: TinyPool) -> AsyncIterator[Client]:
    async with connect(redis_url) as client:
        yield client
