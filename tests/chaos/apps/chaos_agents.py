"""Agents that note what they do: when they began and ended, for whom, and with which fence."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from chaos.effects import TICK_S, Effect

from agentpool import Agent, Context

CHILD = -2
"""A task that another asks for has this number less that of the other's operation."""


class Job(msgspec.Struct):
    """What a run shall do: sleep, and fail before the attempt `succeeds_at`; -1 is never."""

    op: int
    seconds: float = 0.0
    succeeds_at: int = 1
    child: bool = False


class Proof(msgspec.Struct):
    """What a run tells of itself."""

    op: int
    run: str
    fence: int
    attempt: int


class _Notes:
    """The file of this process."""

    def __init__(self) -> None:
        self._pid = self._fd = self._count = 0
        self.worker = ""

    def new(self) -> str:
        """Return a name that no other life or run has."""
        if os.getpid() != self._pid:
            self._open()
        self._count += 1
        return f"{self._pid}-{time.monotonic_ns():x}-{self._count}"

    def write(self, effect: Effect) -> None:
        """Add a line, in one write."""
        os.write(self._fd, msgspec.json.encode(effect) + b"\n")

    def _open(self) -> None:
        self._pid = os.getpid()
        words = Path("/proc/self/cmdline").read_bytes().decode().replace("\0", " ")
        found = re.match(r"agentpool-worker \S+ (\S+)", words)
        self.worker = found[1] if found else ""
        path = Path(os.environ["CHAOS_EFFECTS"]) / f"{self._pid}-{time.monotonic_ns()}.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


_notes = _Notes()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@asynccontextmanager
async def _noted(run: str, *, ticks: bool) -> AsyncIterator[None]:
    """Note how a run ends, and meanwhile, if asked, that it goes on."""
    ticking = asyncio.create_task(_tick(run)) if ticks else None
    how = "raised"
    try:
        yield
        how = "returned"
    except asyncio.CancelledError:
        how = "cancelled"
        raise
    finally:
        if ticking:
            ticking.cancel()
        _notes.write(Effect("end", run, _now(), how))


async def _tick(of: str) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        _notes.write(Effect("tick", of, _now()))


class Clerk(Agent):
    """Does a job and notes it. Goes on working while Redis is away."""

    ticks = False
    life = ""

    async def start(self, ctx: Context) -> None:
        if ctx.fence:
            self.life = _notes.new()
            _notes.write(
                Effect(
                    "start",
                    self.life,
                    _now(),
                    agent=ctx.agent_id,
                    agent_type=type(self).__name__,
                    tenant=ctx.tenant,
                    fence=ctx.fence,
                    worker=_notes.worker,
                    pid=os.getpid(),
                )
            )

    async def stop(self, ctx: Context) -> None:
        if self.life:
            _notes.write(Effect("end", self.life, _now(), "returned"))

    async def run(self, ctx: Context, input: Job) -> Proof:
        run = _notes.new()
        _notes.write(
            Effect(
                "begin",
                run,
                _now(),
                agent=ctx.agent_id if ctx.fence else "",
                agent_type=type(self).__name__,
                tenant=ctx.tenant,
                fence=ctx.fence,
                worker=_notes.worker,
                pid=os.getpid(),
                task=ctx.task_id or "",
                attempt=ctx.attempt,
                op=input.op,
            )
        )
        async with _noted(run, ticks=self.ticks):
            if input.child:
                await ctx.run(Clerk, Job(CHILD - input.op, input.seconds))
            else:
                await asyncio.sleep(input.seconds)
            if input.succeeds_at < 0 or ctx.attempt < input.succeeds_at:
                raise LookupError(f"not at attempt {ctx.attempt}")
        return Proof(input.op, run, ctx.fence, ctx.attempt)


class Keeper(Clerk):
    """Counts its runs and takes the count along when it moves."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self, ctx: Context, input: Job) -> Proof:
        self.count += 1
        return await super().run(ctx, input)

    async def snapshot(self, ctx: Context) -> int:
        return self.count

    async def restore(self, ctx: Context, state: int) -> None:
        self.count = state


class Sole(Clerk):
    """Must not run twice at once: stops when its worker is cut off."""

    on_redis_loss = "stop"
    ticks = True

    async def background(self, ctx: Context) -> None:
        if self.life:
            await _tick(self.life)
        await asyncio.Event().wait()
