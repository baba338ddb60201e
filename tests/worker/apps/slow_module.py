"""Takes its time to start."""

import asyncio
from typing import Any

from agentpool.agent import Agent, Context


class Slow(Agent):
    async def start(self, ctx: Context) -> None:
        ctx.log.info("slow.starting")
        await asyncio.sleep(60)

    async def run(self, ctx: Context, input: Any) -> Any:
        return input
