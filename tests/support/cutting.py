"""A server's door that counts the calls of one actor and, before a given one, closes for good: the actor is cut off
between two calls, as if it had been killed there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

from support.dropping import read_command, serving

__all__ = ["Cutter", "cutting"]


class Cutter:
    """Forwards connections to a Unix socket. `limit` calls pass; with the next one all connections end."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.limit: int | None = None
        self.calls: list[str] = []
        """What was called, in order."""
        self.is_shut = False
        self.swallowed: set[str] = set()
        """Scripts whose calls go nowhere, and are never answered."""
        self.on_cut: Callable[[], None] = lambda: None
        self._writers: set[asyncio.StreamWriter] = set()

    def begin(self, limit: int | None, on_cut: Callable[[], None] = lambda: None) -> None:
        """Count anew, for another actor."""
        self.limit, self.on_cut, self.calls, self.is_shut = limit, on_cut, [], False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        if self.is_shut:
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_unix_connection(self.target)
        mine = {writer, there_writer}
        self._writers |= mine
        answers = asyncio.create_task(self._pass(there_reader, writer))
        try:
            while command := await read_command(reader):
                if self.limit is not None and len(self.calls) >= self.limit:
                    self._cut()
                    break
                self.calls.append(_name_of(command))
                if self.calls[-1] not in self.swallowed:
                    there_writer.write(command)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers -= mine
            answers.cancel()
            for each in mine:
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)

    def _cut(self) -> None:
        self.is_shut = True
        self.end()
        self.on_cut()

    def end(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()


def _name_of(command: bytes) -> str:
    words = command.split(b"\r\n")
    name = words[2].decode()
    return words[4].decode().rpartition("_")[0] if name == "FCALL" else name


@contextlib.asynccontextmanager
async def cutting(url: str, path: Path) -> AsyncIterator[tuple[Cutter, str]]:
    """Open such a door before the server of a Unix URL; yields it and its URL."""
    cutter = Cutter(urlsplit(url).path)
    try:
        async with serving(cutter.serve, path) as own:
            yield cutter, own
    finally:
        cutter.end()
        await asyncio.sleep(0)
