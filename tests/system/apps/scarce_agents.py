"""Agents that use up what a process has, and a wall clock that jumps about, as this module is imported."""

import asyncio
import os
import random
import resource
import time
from typing import Any

from agentpool import Agent, Context

_dice = random.Random(1)


def _somewhen() -> int:
    """A time within a month of the true one, another at each call."""
    return _true_ns() + _dice.randrange(-30 * 86_400, 30 * 86_400) * 1_000_000_000


_true_ns = time.time_ns
if os.environ.get("JUMPING_CLOCK"):
    time.time_ns = _somewhen
    time.time = lambda: _somewhen() / 1e9


class Opens(Agent):
    """Uses up the file descriptors of its worker; returns how many there were, and keeps them for so many s."""

    async def run(self, ctx: Context, input: float) -> int:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
        opened: list[int] = []
        try:
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            await asyncio.sleep(input)
            return len(opened)
        finally:
            for fd in opened:
                os.close(fd)


class Allocates(Agent):
    """Takes more memory than its process may have."""

    async def run(self, ctx: Context, input: Any) -> int:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, most))
        return len(bytearray(1 << 41))


class Echo(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input


class Ages(Agent):
    """Waits."""

    async def run(self, ctx: Context, input: float) -> float:
        began = time.monotonic()
        await asyncio.sleep(input)
        return time.monotonic() - began
