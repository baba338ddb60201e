"""A master for each test: leads a pool on the real server, with a real zygote, and ends all it started."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.worker_harness import Master, mastering


@pytest.fixture
async def make_master(redis_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that makes a master, with settings of its workers by name."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**settings: Any) -> Master:
            return await stack.enter_async_context(mastering(redis_url, tmp_path, **settings))

        yield make


@pytest.fixture
async def master(make_master: Callable[..., Any]) -> Master:
    """A master with the harness's own settings."""
    return await make_master()
