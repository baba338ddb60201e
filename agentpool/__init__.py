"""agentpool: pools of long-lived asynchronous agents, in worker processes, on Redis.

Importing this is cheap; `connect` loads the Redis client when it is first called. Begin at `agent.py` to write
agents, at `client/` to use them.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
    Unplaceable,
    UnsupportedPlatform,
    WorkerLost,
    WorkersNeeded,
)
from agentpool.protocol.retrying import RetryPolicy
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
    "RetryPolicy",
    "ServerError",
    "TaskCancelled",
    "TaskFailed",
    "TaskTimedOut",
    "UnknownAgent",
    "UnknownAgentType",
    "UnknownPool",
    "UnknownTask",
    "UnknownWorker",
    "Unplaceable",
    "UnsupportedPlatform",
    "WorkerLost",
    "WorkersNeeded",
    "__version__",
    "connect",
    "run_sync",
]

T = TypeVar("T")


def connect(
    url: str | None = None,
    *,
    data_dir: str | Path | None = None,
    config: str | Path | None = None,
    pools: Mapping[str, Sequence[type[Agent]]] | None = None,
) -> "Client":
    """Return a client for `async with`, or for `await client.open()` and `await client.close()`; no I/O yet.

    Without a URL the server is looked up as the daemon does: environment, configuration file, then the embedded
    server of the data directory. `local://` has pools inside this process, and so has USE_MULTIPROCESSING=false in
    the environment, whatever the URL: those of the configuration file, or `pools`, agent classes by pool, which
    nothing else looks at.
    """
    from agentpool.client import connect as connect_client

    return connect_client(url, data_dir=data_dir, config=config, pools=pools)


def run_sync(function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
    """Run a coroutine function to its end in a loop of its own thread, for programs that are not asynchronous.

    Safe from any thread, also from one that has a loop already, which is blocked meanwhile.
    """
    from agentpool.pool import run_sync as run

    return run(function, *arguments, **options)
