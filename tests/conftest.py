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

from support.server import flush, start_server

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
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The server of this run. Tests that harm a server start their own."""
    server = start_server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """URL of an empty server."""
    redis_server.start()  # does nothing unless a test before this one ended it
    flush(redis_server.url)
    return redis_server.url
