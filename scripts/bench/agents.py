"""Agents that do nothing, so that what is measured is everything around them."""

from agentpool import Agent, Context

__all__ = ["Idle"]


class Idle(Agent):
    """Returns its input."""

    async def run(self, ctx: Context, input: int) -> int:
        return input
