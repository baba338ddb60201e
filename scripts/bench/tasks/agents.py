"""Agents that do next to nothing, for the task path."""

import asyncio
import os
import time

from agentpool import Agent, Context

__all__ = ["Announcing", "Length", "Started"]


class Length(Agent):
    """Returns the length of its input, as the peers' tasks do."""

    async def run(self, ctx: Context, input: str) -> int:
        return len(input)


class Started(Agent):
    """Returns the moment at which it runs, in ns."""

    async def run(self, ctx: Context, input: str) -> int:
        return time.time_ns()


class Announcing(Agent):
    """Appends its process, its name and the moment to a file, then sleeps until it is ended."""

    async def run(self, ctx: Context, input: tuple[str, str]) -> None:
        path, name = input
        moment = time.time_ns()
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{os.getpid()} {name} {moment}\n".encode())
        finally:
            os.close(file)
        await asyncio.sleep(3600)
