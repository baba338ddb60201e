"""Fixtures for all tests: one real Redis server per run, started by the suite itself and always stopped."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

# So that tests say `from support.wait import wait_until`, whatever the import mode.
if (here := str(Path(__file__).parent)) not in sys.path:
    sys.path.insert(0, here)

from agentpool.redis_server import EmbeddedServer


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a test tells the whole process about logging is forgotten after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def redis_server(agentpool_server: EmbeddedServer) -> EmbeddedServer:
    """The server of this run. Tests that harm a server start their own."""
    return agentpool_server


@pytest.fixture
def redis_url(agentpool_url: str) -> str:
    """URL of an empty server."""
    return agentpool_url
