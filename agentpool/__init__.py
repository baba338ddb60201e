"""agentpool: pools of long-lived asynchronous agents, in worker processes, on Redis.

Importing this is cheap; `connect` loads the Redis client when it is first called. Begin at `agent.py` to write
agents, at `client/` to use them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from agentpool.agent import Agent, Context
from agentpool.errors import (
    AgentFailed,
    AgentLimitError,
    AgentPoolError,
    AgentTerminated,
    ConfigError,
    DamagedRecord,
    DuplicateAgent,
    IdempotencyConflict,
    InputTooLarge,
    InvalidInput,
    NoCapacity,
    PoolAtCapacity,
    PoolClosed,
    QueueFull,
    RedisUnavailable,
    ServerError,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    UnknownAgent,
    UnknownAgentType,
    UnknownPool,
    UnknownTask,
    UnknownWorker,
    UnsupportedPlatform,
    WorkerLost,
)
from agentpool.version import __version__

if TYPE_CHECKING:
    from agentpool.client import Client

__all__ = [
    "Agent",
    "AgentFailed",
    "AgentLimitError",
    "AgentPoolError",
    "AgentTerminated",
    "ConfigError",
    "Context",
    "DamagedRecord",
    "DuplicateAgent",
    "IdempotencyConflict",
    "InputTooLarge",
    "InvalidInput",
    "NoCapacity",
    "PoolAtCapacity",
    "PoolClosed",
    "QueueFull",
    "RedisUnavailable",
    "ServerError",
    "TaskCancelled",
    "TaskFailed",
    "TaskTimedOut",
    "UnknownAgent",
    "UnknownAgentType",
    "UnknownPool",
    "UnknownTask",
    "UnknownWorker",
    "UnsupportedPlatform",
    "WorkerLost",
    "__version__",
    "connect",
]


def connect(
    url: str | None = None,
    *,
    data_dir: str | Path | None = None,
    config: str | Path | None = None,
) -> "Client":
    """Return a client for `async with`, or for `await client.open()` and `await client.close()`; no I/O yet.

    Without a URL the server is looked up as the daemon does: environment, configuration file, then the embedded
    server of the data directory.
    """
    from agentpool.client import connect as connect_client

    return connect_client(url, data_dir=data_dir, config=config)
