"""More agents for drains."""

from typing import Any

from sample_agents import Counter, Failing
from slow_module import Slow

from agentpool.agent import Agent, Context

__all__ = ["Clumsy", "Counter", "Failing", "Slow"]


class Clumsy(Agent):
    """Fails at everything on its way out."""

    async def run(self, ctx: Context, input: Any) -> None: ...

    async def snapshot(self, ctx: Context) -> Any:
        return object()

    async def stop(self, ctx: Context) -> None:
        raise OSError("the disk is gone")
