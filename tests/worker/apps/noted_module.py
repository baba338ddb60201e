"""Says on standard error when it stops."""

import sys
from typing import Any

from sample_agents import Adder, Identity

from agentpool.agent import Agent, Context

__all__ = ["Adder", "Identity", "Noted"]


class Noted(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input

    async def stop(self, ctx: Context) -> None:
        print("noted stop", ctx.tenant, file=sys.stderr, flush=True)
