"""Servers of which tests need more than users' do."""

from contextlib import suppress
from typing import Literal

from agentpool.errors import ServerError
from agentpool.redis_server import find_binary
from agentpool.testing import flush, start_server

__all__ = ["available_binaries", "flush", "start_server"]


def available_binaries() -> list[Literal["system", "bundled"]]:
    """The settings of `binary` that find a server on this machine; at least one of them must."""
    found: list[Literal["system", "bundled"]] = []
    for choice in ("system", "bundled"):
        with suppress(ServerError):
            find_binary(choice)
            found.append(choice)
    if not found:
        find_binary("auto")  # raises, with advice
    return found
