"""Agents for system tests: each does one thing that an agent may do, good or bad."""

import asyncio
import os
import signal
import time
from typing import Any

import msgspec

from agentpool import Agent, Context


class Echo(Agent):
    """Returns its input."""

    async def run(self, ctx: Context, input: Any) -> Any:
        return input


class Place(Agent):
    """Tells where it runs."""

    async def run(self, ctx: Context, input: Any) -> dict[str, Any]:
        return {"pid": os.getpid(), "fence": ctx.fence, "agent_id": ctx.agent_id}


class Counter(Agent):
    """Counts its runs, across moves."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self, ctx: Context, input: Any) -> int:
        self.count += 1
        return self.count

    async def snapshot(self, ctx: Context) -> int:
        return self.count

    async def restore(self, ctx: Context, state: int) -> None:
        self.count = state


class Sleeper(Agent):
    """Sleeps for as many seconds as it is told."""

    async def run(self, ctx: Context, input: float) -> str:
        await asyncio.sleep(input)
        return "slept"


class Blocker(Agent):
    """Blocks its event loop."""

    async def run(self, ctx: Context, input: float) -> str:
        time.sleep(input)
        return "blocked"


class Suicide(Agent):
    """Kills its worker."""

    async def run(self, ctx: Context, input: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class NeverStarts(Agent):
    """Cannot start."""

    async def start(self, ctx: Context) -> None:
        raise RuntimeError("no luck today")

    async def run(self, ctx: Context, input: Any) -> None:
        return None


class KillsAtStart(Agent):
    """Kills its worker whenever it starts."""

    async def start(self, ctx: Context) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def run(self, ctx: Context, input: Any) -> None:
        return None


class KillsInBackground(Agent):
    """Starts, and a moment later kills its worker."""

    async def background(self, ctx: Context) -> None:
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGSEGV)

    async def run(self, ctx: Context, input: Any) -> None:
        return None


class Numbers(msgspec.Struct):
    """Typed input."""

    values: list[int]


class Adder(Agent):
    """Adds numbers; its input is typed."""

    async def run(self, ctx: Context, input: Numbers) -> int:
        return sum(input.values)
