"""Agents for tests of what becomes of tasks: they fail, die, linger, spend and tell when they ran."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from agentpool import Agent, Context, RetryPolicy


class Napper(Agent):
    """Sleeps, and tells who it was and when it ran."""

    async def run(self, ctx: Context, input: float) -> dict[str, Any]:
        began = time.time()
        await asyncio.sleep(input)
        return {"pid": os.getpid(), "attempt": ctx.attempt, "began": began, "ended": time.time()}


class Noted(Agent):
    """Writes a line into the file that it is told, and sleeps for so long."""

    async def run(self, ctx: Context, input: tuple[str, float]) -> None:
        path, seconds = input
        with Path(path).open("a") as notes:
            notes.write(f"{ctx.task_id}\n")
        await asyncio.sleep(seconds)


class Poison(Agent):
    """Kills its worker, in the way it is told, shortly after it began."""

    async def run(self, ctx: Context, input: str) -> None:
        await asyncio.sleep(0.05)
        if input == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGSEGV)


class Stubborn(Agent):
    """Ignores its cancellation."""

    async def run(self, ctx: Context, input: Any) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)


class Blocker(Agent):
    """Blocks the event loop, asleep or busy."""

    async def run(self, ctx: Context, input: dict[str, Any]) -> str:
        until = time.monotonic() + input["seconds"]
        if input.get("busy"):
            while time.monotonic() < until:
                pass
        else:
            time.sleep(input["seconds"])
        return "blocked"


class Flaky(Agent):
    """Fails until the attempt that its input names; with a file, notes there when each began."""

    async def run(self, ctx: Context, input: dict[str, Any]) -> int:
        if path := input.get("path"):
            with Path(path).open("a") as file:
                file.write(f"{ctx.attempt} {time.time()}\n")
        if ctx.attempt < input["attempt"]:
            raise LookupError(f"not yet: attempt {ctx.attempt}")
        return ctx.attempt


class Patient(Flaky):
    """Is tried twice, as its class says, and only for what a lookup raises."""

    retry = RetryPolicy(attempts=2, delay=0.05, jitter=False, on=(LookupError,))


class LateStarter(Agent):
    """Cannot start until a file exists in the folder of its master."""

    async def start(self, ctx: Context) -> None:
        if not Path("licence").exists():
            raise RuntimeError("no licence found")

    async def run(self, ctx: Context, input: Any) -> int:
        return ctx.attempt


class Emitter(Agent):
    """Reports progress."""

    async def run(self, ctx: Context, input: int) -> str:
        for step in range(input):
            ctx.emit({"step": step})
            await asyncio.sleep(0.01)
        return "done"


class Parent(Agent):
    """Has another task done and waits for it."""

    async def run(self, ctx: Context, input: float) -> float:
        answer = await ctx.run("Napper", input)
        return float(answer["ended"])


class Deep(Agent):
    """Nests as deep as it is told; tells how deep it came."""

    async def run(self, ctx: Context, input: int) -> int:
        return await ctx.run("Deep", input - 1) if input else ctx.depth


class Spender(Agent):
    """Uses tokens."""

    async def run(self, ctx: Context, input: int) -> int:
        ctx.tokens(input)
        return ctx.token_count


class DiesAtStart(Agent):
    """Kills its worker while it starts."""

    async def start(self, ctx: Context) -> None:
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    async def run(self, ctx: Context, input: Any) -> None: ...


class Shared(Napper):
    """Is of no tenant's own."""

    scope = "shared"
