"""The door for programs without an event loop, and for other threads: a loop of its own in a background thread.

An `AgentPool` is not locked and refuses other threads; what is here hands every call to the thread of the loop.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from agentpool.agent import Agent
from agentpool.errors import PoolClosed
from agentpool.pool.config import PoolConfig
from agentpool.pool.lease import Lease
from agentpool.pool.metrics import PoolMetrics
from agentpool.pool.pool import PRIORITY, AgentPool

__all__ = ["SyncLease", "SyncPool", "run_sync"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread. `call` may be used from any other thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
        """Run a coroutine function in the loop and return its result; an interrupt cancels it."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("this would wait for itself: inside the loop use AgentPool and await")
        if not self._thread.is_alive():
            raise PoolClosed("The loop of this pool has ended. Open a new one.")
        future = asyncio.run_coroutine_threadsafe(function(*arguments, **options), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread; may be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


class SyncLease:
    """An agent held by a thread: `with pool.acquire() as agent: agent.run(input)`."""

    def __init__(self, thread: LoopThread, pool: AgentPool, lease: Lease) -> None:
        self._thread, self._pool, self._lease = thread, pool, lease

    @property
    def agent_id(self) -> str:
        """The id of the agent."""
        return self._lease.agent_id

    def run(self, input: Any, *, timeout: float | None = None) -> Any:
        """Run one task on the agent and return its result."""
        return self._thread.call(self._lease.run, input, timeout=timeout)

    def release(self) -> None:
        """Give the agent back; may be called twice."""
        self._thread.call(_release, self._pool, self._lease)

    def __enter__(self) -> "SyncLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()


class SyncPool:
    """An `AgentPool` for synchronous programs, usable from any number of threads."""

    def __init__(self, agent: type[Agent], config: PoolConfig | None = None, *, name: str = "local") -> None:
        self._pool = AgentPool(agent, config, name=name)
        self._thread = LoopThread(f"agentpool {name}")
        self._thread.call(self._pool.open)

    def acquire(self, timeout: float | None = None, *, priority: int = PRIORITY) -> SyncLease:
        """Wait for an agent; same errors as `AgentPool.acquire`."""
        lease = self._pool.acquire(timeout, priority=priority)
        try:
            self._thread.call(_hold, lease)
        except BaseException:
            self._thread.call(_release, self._pool, lease)  # an interrupt may come when it is held already
            raise
        return SyncLease(self._thread, self._pool, lease)

    def run(self, input: Any, *, timeout: float | None = None, priority: int = PRIORITY) -> Any:
        """Run one task on any agent; `timeout` s bound the wait for the agent."""
        return self._thread.call(self._pool.run, input, timeout=timeout, priority=priority)

    def warm(self) -> int:
        """Wait until `min_size` agents are ready."""
        return self._thread.call(self._pool.warm)

    def metrics(self) -> PoolMetrics:
        """Return a snapshot of the pool's figures."""
        return self._thread.call(_metrics, self._pool)

    def close(self) -> None:
        """Close the pool and end its thread; may be called twice."""
        try:
            self._thread.call(self._pool.close)
        except PoolClosed:
            return
        finally:
            self._thread.stop()

    def __enter__(self) -> "SyncPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def run_sync(function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
    """Run a coroutine function to its end in a loop of its own thread, also where this thread has a loop already.

    The thread that calls is blocked meanwhile: from inside a loop, await the function instead.
    """
    thread = LoopThread("agentpool run_sync")
    try:
        return thread.call(function, *arguments, **options)
    finally:
        thread.stop()


async def _hold(lease: Lease) -> None:
    await lease


async def _release(pool: AgentPool, lease: Lease) -> None:
    pool.release(lease)


async def _metrics(pool: AgentPool) -> PoolMetrics:
    return pool.metrics()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=5.0)
