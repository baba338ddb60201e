"""Agents for `make run`: a reviewer that counts words, and an echo that can be made to misbehave."""

import asyncio
import os
import time

import msgspec

from agentpool import Agent, Context


class Diff(msgspec.Struct, forbid_unknown_fields=True):
    """What a Reviewer is given."""

    text: str = ""


class Review(msgspec.Struct):
    """What a Reviewer answers."""

    words: int
    reviews_so_far: int
    verdict: str


class Reviewer(Agent):
    """Counts words; remembers across a move how many reviews it gave."""

    def __init__(self) -> None:
        self.reviews = 0

    async def run(self, ctx: Context, input: Diff) -> Review:
        self.reviews += 1
        words = len(input.text.split())
        ctx.tokens(words)
        return Review(words, self.reviews, "short" if words < 100 else "long")

    async def snapshot(self, ctx: Context) -> int:
        return self.reviews

    async def restore(self, ctx: Context, state: int) -> None:
        self.reviews = state


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What a Tester does: sleep, block the loop, raise, or die."""

    sleep: float = 0.0
    block: float = 0.0
    fail: str = ""
    die: bool = False


class Tester(Agent):
    """Does what it is told, good or bad: for trying what happens."""

    async def run(self, ctx: Context, input: Order) -> str:
        await asyncio.sleep(input.sleep)
        if input.block:
            time.sleep(input.block)
        if input.fail:
            raise RuntimeError(input.fail)
        if input.die:
            os.abort()
        return f"done on pid {os.getpid()}"
