"""An agent of which two must never run."""

import asyncio
import sys

from sample_agents import Counter

from agentpool.agent import Agent, Context

__all__ = ["Counter", "Exclusive"]


class Exclusive(Agent):
    on_redis_loss = "stop"

    async def run(self, ctx: Context, input: float) -> None:
        print("exclusive begins", file=sys.stderr, flush=True)
        try:
            await asyncio.sleep(input)
        except asyncio.CancelledError:
            print("exclusive cancelled", file=sys.stderr, flush=True)
            raise
