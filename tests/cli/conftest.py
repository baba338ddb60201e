"""The operator's command, called in a thread beside the test's own loop, where a tiny pool works."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.command import Cli, Ran, run_main
from support.tiny_pool import POOL, TinyPool, tiny_pool


@pytest.fixture
async def tiny(redis_url: str) -> AsyncIterator[TinyPool]:
    async with tiny_pool(redis_url, POOL) as pool:
        yield pool


@pytest.fixture
def cli(redis_url: str) -> Cli:
    async def call(*words: str, stdin: bytes = b"", url: str = redis_url) -> Ran:
        return await asyncio.to_thread(run_main, (*words, "--redis-url", url), stdin)

    return call
