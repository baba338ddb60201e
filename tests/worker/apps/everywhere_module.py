"""Agents for the tests that run against workers and against local pools alike."""

import asyncio
from typing import Any

import msgspec

from agentpool import Agent, Context, RetryPolicy


class Diff(msgspec.Struct):
    path: str
    lines: list[int] = []


class Review(msgspec.Struct):
    text: str
    score: int = 0


class Reviewer(Agent):
    async def run(self, ctx: Context, input: Diff) -> Review:
        if input.path == "broken":
            raise LookupError("no such file")
        return Review(text=f"{ctx.tenant}: {input.path}", score=len(input.lines))


class Counter(Agent):
    """Counts its runs; gives them in order."""

    async def start(self, ctx: Context) -> None:
        self.count = 0

    async def run(self, ctx: Context, input: int) -> int:
        self.count += input
        return self.count


class Shared(Counter):
    scope = "shared"


class Sleeper(Agent):
    async def run(self, ctx: Context, input: float) -> str:
        await asyncio.sleep(input)
        return ctx.agent_id


class Napper(Agent):
    async def run(self, ctx: Context, input: float) -> float:
        await asyncio.sleep(input)
        return input


class Teller(Agent):
    """Tells what it is told."""

    async def run(self, ctx: Context, input: Any) -> dict[str, Any]:
        ctx.tokens(3)
        names = ("agent_id", "pool", "tenant", "project", "task_id", "attempt", "fence")
        return {name: getattr(ctx, name) for name in names}


class Asker(Agent):
    async def run(self, ctx: Context, input: list[int]) -> list[int]:
        return [await ctx.run("Counter", number) for number in input]


class NeverStarts(Agent):
    async def start(self, ctx: Context) -> None:
        raise RuntimeError("no licence found")

    async def run(self, ctx: Context, input: Any) -> None: ...


class SlowToStart(Agent):
    async def start(self, ctx: Context) -> None:
        await asyncio.sleep(60)

    async def run(self, ctx: Context, input: Any) -> None: ...


class Feverish(Agent):
    """Is healthy until it has run."""

    async def start(self, ctx: Context) -> None:
        self.well = True

    async def run(self, ctx: Context, input: Any) -> None:
        self.well = False

    async def healthy(self, ctx: Context) -> bool:
        return self.well


class Flaky(Agent):
    """Fails until it is tried for the `input`-th time."""

    async def run(self, ctx: Context, input: int) -> int:
        ctx.emit({"attempt": ctx.attempt})
        if ctx.attempt < input:
            raise LookupError(f"attempt {ctx.attempt}")
        return ctx.attempt


class Decided(Flaky):
    """Says itself how often it is tried."""

    retry = RetryPolicy(attempts=2, delay=0.01)


class Spender(Agent):
    """Uses as many tokens as it is told."""

    async def run(self, ctx: Context, input: int) -> int:
        ctx.tokens(input)
        return input


class Nested(Agent):
    """Asks its like, `input` deep, and tells how deep it came."""

    retry = RetryPolicy(attempts=1)

    async def run(self, ctx: Context, input: int) -> int:
        await asyncio.sleep(0.02)
        return ctx.depth if not input else await ctx.run("Nested", input - 1)


class Painter(Agent):
    labels = "gpu"

    async def run(self, ctx: Context, input: Any) -> str:
        return "painted"


ALL = (
    Reviewer, Counter, Shared, Sleeper, Napper, Teller, Asker, NeverStarts, SlowToStart, Feverish, Flaky, Decided,
    Spender, Nested, Painter,
)  # fmt: skip
