"""What helps to test agents: throw-away servers, pools for a block, waiting with a deadline, faults.

May import client, doctor and what lies below; nothing of the product imports it. Begin at `live.py`, a real master with
its workers, or at `local_pool` for a pool inside the test's own process. The fixtures are in `agentpool.pytest_plugin`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentpool.agent import Agent
from agentpool.client import connect
from agentpool.client.pool import Pool
from agentpool.testing.faults import freeze_worker, kill_worker, running_processes, thaw_worker, worker_pid
from agentpool.testing.live import LiveMaster, clean_environ, ended, live_pool
from agentpool.testing.servers import flush, start_server, throw_away_server
from agentpool.testing.waiting import wait_until, wait_until_sync

__all__ = [
    "LiveMaster",
    "clean_environ",
    "ended",
    "flush",
    "freeze_worker",
    "kill_worker",
    "live_pool",
    "local_pool",
    "running_processes",
    "start_server",
    "thaw_worker",
    "throw_away_server",
    "wait_until",
    "wait_until_sync",
    "worker_pid",
]


@asynccontextmanager
async def local_pool(*agents: type[Agent], name: str = "test_pool") -> AsyncIterator[Pool]:
    """A pool inside this very process for the block, without Redis: the same calls, the same errors."""
    async with connect("local://", pools={name: agents}) as client:
        yield client.pool(name)
