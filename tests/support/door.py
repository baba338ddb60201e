"""A server's door that can be shut: nothing passes then, and what was under way comes late when it opens again."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Door", "door_to"]


class Door:
    """Forwards connections to a server, in a thread of its own, so that tests may block meanwhile."""

    def __init__(self, target: str, path: Path) -> None:
        self._target, self._path = urlsplit(target).path, path
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="door", daemon=True)

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(5)

    def shut(self) -> None:
        """Cut the network: connections stay, and are silent."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def open(self) -> None:
        """Heal it."""
        self._loop.call_soon_threadsafe(self._open.set)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _serve(self) -> None:
        self._server = await asyncio.start_unix_server(self._carry, self._path)

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # in which what was closed comes to its end

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._open.wait()
            there, to_there = await asyncio.open_unix_connection(self._target)
            writers.append(to_there)
            await asyncio.gather(self._pass(reader, to_there), self._pass(there, writer))
        for each in writers:
            each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@contextlib.contextmanager
def door_to(url: str, path: Path) -> Iterator[Door]:
    """A door for the block."""
    door = Door(url, path)
    door.start()
    try:
        yield door
    finally:
        door.stop()
