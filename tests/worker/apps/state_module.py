"""Agents that have trouble with their state."""

import asyncio
import sys
from typing import Any

from sample_agents import Adder, Counter

from agentpool.agent import Agent, Context

__all__ = ["Adder", "Counter", "Forgetful", "Hoarder", "Recovering"]


class Hoarder(Agent):
    """Wants to take more along than `input` bytes."""

    kept = ""

    async def run(self, ctx: Context, input: int) -> int:
        self.kept = "x" * input
        return input

    async def snapshot(self, ctx: Context) -> str:
        return self.kept

    async def restore(self, ctx: Context, state: str) -> None:
        self.kept = state


class Forgetful(Agent):
    """Opens something in start(), and cannot restore what it left: it raises, or it hangs."""

    async def start(self, ctx: Context) -> None:
        print("forgetful opened", file=sys.stderr, flush=True)

    async def run(self, ctx: Context, input: Any) -> None: ...

    async def snapshot(self, ctx: Context) -> str:
        return ""

    async def restore(self, ctx: Context, state: str) -> None:
        if state == "hang":
            await asyncio.sleep(60)
        raise LookupError("what was " + state)

    async def stop(self, ctx: Context) -> None:
        print("forgetful closed", file=sys.stderr, flush=True)


class Recovering(Agent):
    """Its first background work fails, later ones do not."""

    failed = False

    async def background(self, ctx: Context) -> None:
        if not type(self).failed:
            type(self).failed = True
            raise ValueError("the feed closed")

    async def run(self, ctx: Context, input: Any) -> Any:
        return input
