"""Doors before a server, one for each host and one for the clients, which harm what goes through them.

A process of its own, so that what the harness does otherwise takes no time from it: `Doors` starts it and tells it, a
line of JSON each, what its doors shall do. `Door` itself runs in any loop.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec

__all__ = ["OPEN", "Door", "Doors", "Harm"]

CHUNK_BYTES = 65536


class Harm(msgspec.Struct, frozen=True):
    """What a door does to what passes. `drop` is the share of answers that are lost with their connection after the
    command was carried out; `delay` is in s; what is held up is passed on when the door opens again.
    """

    hold_requests: bool = False
    hold_replies: bool = False
    refuse: bool = False
    """Connections are cut, and new ones are cut at once."""
    drop: float = 0.0
    delay: float = 0.0


OPEN = Harm()


class Door:
    """Forwards TCP connections on a port of this host to a Unix socket."""

    def __init__(self, target: str, seed: int = 0) -> None:
        self.target, self.port = target, 0
        self.dropped = 0
        """Answers that were lost."""
        self._harm = OPEN
        self._changed = asyncio.Event()
        self._dice = random.Random(seed)
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        """Begin to listen; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    def set(self, harm: Harm, *, cut: bool = False) -> None:
        """Do this from now on; with `cut` all connections there are end, and what they held up is lost."""
        self._harm = harm
        self._changed.set()
        self._changed = asyncio.Event()
        if cut or harm.refuse:
            for pair in list(self._connections):
                _abort(pair)

    async def close(self) -> None:
        """Close it, with its connections."""
        assert self._server is not None
        self._server.close()
        self.set(OPEN, cut=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._harm.refuse:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.transport.abort()  # as a port on which nobody listens
            return
        pair = (writer, there_writer)
        self._connections.add(pair)
        flows = [
            asyncio.create_task(self._carry(reader, there_writer, pair, is_reply=False)),
            asyncio.create_task(self._carry(there_reader, writer, pair, is_reply=True)),
        ]
        try:
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            _abort(pair)
            for flow in flows:
                flow.cancel()
            self._connections.discard(pair)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        is_reply: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if is_reply and self._harm.drop and self._dice.random() < self._harm.drop:
                    self.dropped += 1
                    return
                if self._harm.delay:
                    await asyncio.sleep(self._harm.delay)
                await self._pass(is_reply)
                sink.write(data)
                await sink.drain()

    async def _pass(self, is_reply: bool) -> None:
        while self._harm.hold_replies if is_reply else self._harm.hold_requests:
            await self._changed.wait()


def _abort(pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
    for writer in pair:
        writer.transport.abort()


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
