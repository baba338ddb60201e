"""Fixtures for tests of agents; they do nothing unless they are asked for.

pytest finds this module by its entry point wherever agentpool is installed, so it imports nothing else of agentpool
until a fixture is used. What the fixtures give is described in docs/testing.md.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from agentpool.redis_server import EmbeddedServer
    from agentpool.testing import LiveMaster

__all__ = ["agentpool_live", "agentpool_server", "agentpool_url"]


@pytest.fixture(scope="session")
def agentpool_server() -> "Iterator[EmbeddedServer]":
    """A real Redis server for the whole run, on a Unix socket; its data goes with it."""
    from agentpool.testing import throw_away_server

    with throw_away_server() as server:
        yield server


@pytest.fixture
def agentpool_url(agentpool_server: "EmbeddedServer") -> str:
    """URL of the run's server, which is empty and alive when a test begins."""
    from agentpool.testing import flush

    agentpool_server.start()  # does nothing unless a test before this one ended it
    flush(agentpool_server.url)
    return agentpool_server.url


@pytest.fixture
def agentpool_live() -> "Iterator[Callable[..., LiveMaster]]":
    """A function that starts a real master with a pool of these agents, like `live_pool`; it ends with the test."""
    from agentpool.testing import live_pool

    with ExitStack() as stack:

        def begin(*agents: Any, **settings: Any) -> "LiveMaster":
            return stack.enter_context(live_pool(*agents, **settings))

        yield begin
