"""Doors before a server, one for each host and one for the clients, which harm what goes through them.

A process of its own, so that what the harness does otherwise takes no time from it: `Doors` starts it and tells it, a
line of JSON each, what its doors shall do.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
from support.door import Door, Harm

__all__ = ["Doors"]


class Doors:
    """The process with the doors of these names. `ports` are theirs once it is open."""

    def __init__(self, target: str, names: list[str], seed: int) -> None:
        self.ports: dict[str, int] = {}
        self._target, self._names, self._seed = target, names, seed
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def open(self) -> None:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chaos.proxy",
            self._target,
            str(self._seed),
            *self._names,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        self.ports = await self._read()

    def url(self, name: str) -> str:
        """The Redis URL of a door."""
        return f"redis://127.0.0.1:{self.ports[name]}/0"

    async def set(self, name: str, harm: Harm, *, cut: bool = False) -> None:
        """See `Door.set`; returns when it is so."""
        await self._ask({"door": name, "harm": msgspec.to_builtins(harm), "cut": cut})

    async def dropped(self) -> int:
        """Return how many answers were lost at all doors."""
        return int((await self._ask({}))["dropped"])

    async def close(self) -> None:
        """End it."""
        if self._process and self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await self._process.wait()

    async def _ask(self, question: dict[str, object]) -> dict[str, int]:
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            return await self._read()

    async def _read(self) -> dict[str, int]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process with the doors has ended")
        answer: dict[str, int] = json.loads(line)
        return answer


async def _main(target: str, seed: int, names: list[str]) -> None:
    doors = {name: Door(target, seed + place) for place, name in enumerate(names)}
    print(json.dumps({name: await door.open() for name, door in doors.items()}), flush=True)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        question = json.loads(line)
        if "door" in question:
            harm = msgspec.convert(question["harm"], Harm)
            doors[question["door"]].set(harm, cut=question["cut"])
        print(json.dumps({"dropped": sum(door.dropped for door in doors.values())}), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
