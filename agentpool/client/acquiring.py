"""What `pool.acquire()` returns: the request for an agent of one's own, which is awaited or entered once."""

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any

from agentpool.client.agents import AgentHandle

__all__ = ["Acquiring"]


class Acquiring:
    """Await it to have an agent until it is released, or enter it with `async with` to have one for the block."""

    __slots__ = ("_agent", "_asked", "_release", "_spawn")

    def __init__(
        self, spawn: Callable[[], Awaitable[AgentHandle]], release: Callable[[AgentHandle], Awaitable[None]]
    ) -> None:
        self._spawn, self._release = spawn, release
        self._agent: AgentHandle | None = None
        self._asked = False

    def __await__(self) -> Generator[Any, Any, AgentHandle]:
        return self._acquire().__await__()

    async def __aenter__(self) -> AgentHandle:
        self._agent = await self._acquire()
        return self._agent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._agent
        await self._release(self._agent)

    async def _acquire(self) -> AgentHandle:
        if self._asked:
            raise RuntimeError("an agent can be acquired once: call pool.acquire() again")
        self._asked = True
        return await self._spawn()
