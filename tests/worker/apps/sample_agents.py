"""Agents that do, and fail to do, what the tests of the worker need."""

import asyncio
import contextlib
import os
import time
from typing import Any

import msgspec

from agentpool.agent import Agent, Context


class Sum(msgspec.Struct):
    a: int
    b: int


class Adder(Agent):
    async def run(self, ctx: Context, input: Sum) -> int:
        ctx.tokens(2)
        return input.a + input.b


class Sleeper(Agent):
    """Sleeps for `input` seconds; notes in files what happened to it."""

    async def run(self, ctx: Context, input: float) -> str:
        await asyncio.sleep(input)
        return ctx.agent_id

    async def stop(self, ctx: Context) -> None:
        await asyncio.sleep(0)


class Counter(Agent):
    """Has state that it takes along."""

    async def start(self, ctx: Context) -> None:
        self.count = 0

    async def run(self, ctx: Context, input: int) -> int:
        self.count += input
        return self.count

    async def snapshot(self, ctx: Context) -> Any:
        return {"count": self.count}

    async def restore(self, ctx: Context, state: Any) -> None:
        self.count = state["count"]


class Failing(Agent):
    async def start(self, ctx: Context) -> None:
        raise RuntimeError("no licence found")

    async def run(self, ctx: Context, input: Any) -> None: ...


class Exiting(Agent):
    """Tries to end the process in every way that Python code has."""

    async def run(self, ctx: Context, input: str) -> str:
        if input == "task":
            asyncio.create_task(self._exit())  # noqa: RUF006
            await asyncio.sleep(0.05)
            return "survived"
        raise SystemExit(3)

    async def _exit(self) -> None:
        raise SystemExit(4)


class Background(Agent):
    async def background(self, ctx: Context) -> None:
        await asyncio.sleep(0.05)
        raise ValueError("the feed closed")

    async def run(self, ctx: Context, input: Any) -> None: ...


class Stubborn(Agent):
    """Ignores its cancellation."""

    async def run(self, ctx: Context, input: Any) -> int:
        if input == "id":
            return id(self)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)


class Blocker(Agent):
    """Blocks the event loop for `input` seconds."""

    async def run(self, ctx: Context, input: float) -> str:
        self.block_the_loop(input)
        return "done"

    def block_the_loop(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass


class Sick(Agent):
    """Healthy until it is told not to be."""

    well = True

    async def run(self, ctx: Context, input: Any) -> int:
        type(self).well = False
        return os.getpid()

    async def healthy(self, ctx: Context) -> bool:
        return self.well


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Raising(Agent):
    async def run(self, ctx: Context, input: str) -> Any:
        if input == "object":
            return object()
        if input == "mute":
            raise Mute
        if input == "half":
            raise LookupError("nothing called \udcff")
        if input == "big":
            return "x" * 2_000_000
        raise LookupError("nothing called " + input)


class Sawer(Agent):
    """Saws off the branch that the worker sits on."""

    async def run(self, ctx: Context, input: str) -> None:
        for task in asyncio.all_tasks():
            if task.get_name() == input:
                task.cancel()


class Asker(Agent):
    """Has others work for it."""

    async def run(self, ctx: Context, input: int) -> int:
        return await ctx.run("Adder", {"a": input, "b": input})


class Identity(Agent):
    """Tells which object ran."""

    async def run(self, ctx: Context, input: Any) -> int:
        await asyncio.sleep(float(input or 0))
        return id(self)


class Shared(Identity):
    scope = "shared"
