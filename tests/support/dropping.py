"""A server's door that loses answers: commands pass, and the first answer to each call of a script never comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Dropper", "dropping", "read_command", "script_of", "serving"]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Dropper:
    """Forwards connections to a Unix socket. A command that is sent for the first time is carried out by the server,
    but its answer is thrown away and the connection closed; its repeat, equal to the byte, is answered.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.dropped: set[str] = set()
        """Names of the scripts whose answers were lost, as the server knows them."""
        self._seen: set[bytes] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        there_reader, there_writer = await asyncio.open_unix_connection(self.target)
        try:
            while command := await read_command(reader):
                there_writer.write(command)
                answer = await read_answer(there_reader)
                if self._is_lost(command, answer):
                    self.dropped.add(script_of(command))
                    break
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in (writer, there_writer):
                each.close()

    def _is_lost(self, command: bytes, answer: bytes) -> bool:
        """Only what was carried out counts: a script that the server did not know yet comes again."""
        if b"$5\r\nFCALL\r\n" not in command[:20] or answer.startswith(b"-") or command in self._seen:
            return False
        self._seen.add(command)
        return True


def script_of(command: bytes) -> str:
    return command.split(b"\r\n", 5)[4].decode()


async def read_command(reader: asyncio.StreamReader) -> bytes:
    """One command as redis-py sends it, an array of strings; empty when the connection ends."""
    line = await reader.readline()
    parts = [line]
    for _ in range(int(line[1:]) if line else 0):
        length = await reader.readline()
        parts += [length, await reader.readexactly(int(length[1:]) + 2)]
    return b"".join(parts)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line:
        raise ConnectionError("the server is gone")
    kind, count = line[:1], int(line[1:]) if line[:1] in b"$*" else 0
    if kind == b"$":
        return line + (await reader.readexactly(count + 2) if count >= 0 else b"")
    return line + b"".join([await read_answer(reader) for _ in range(max(count, 0))])


@contextlib.asynccontextmanager
async def serving(serve: Serve, path: Path) -> AsyncIterator[str]:
    """Serve connections to a Unix socket at `path`; yields its URL."""
    server = await asyncio.start_unix_server(serve, path, limit=2**24)
    try:
        yield f"unix://{path}"
    finally:
        server.close()


@contextlib.asynccontextmanager
async def dropping(url: str, path: Path) -> AsyncIterator[tuple[Dropper, str]]:
    """Open such a door before the server of a Unix URL; yields it and its URL."""
    dropper = Dropper(urlsplit(url).path)
    async with serving(dropper.serve, path) as own:
        yield dropper, own
