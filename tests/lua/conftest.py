"""A store on an empty server, for tests of scripts."""

from collections.abc import AsyncIterator

import pytest
from support.seeds import new_store

from agentpool.store import Store


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with new_store(redis_url) as store:
        yield store
