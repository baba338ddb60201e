"""A door before a server, which harms what goes through it: it holds it up, loses it, or lets nobody in."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

__all__ = ["OPEN", "SHUT", "Door", "DoorInThread", "Harm", "door_to"]

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
SHUT = Harm(hold_requests=True, hold_replies=True)
"""As when the network is cut: connections stay, and are silent."""


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


class DoorInThread:
    """A door in a thread of its own, so that tests may block meanwhile."""

    def __init__(self, target: str) -> None:
        self._door = Door(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="door", daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._door.open(), self._loop).result(5)
        self.url = f"redis://127.0.0.1:{port}/0"

    def shut(self) -> None:
        """Cut the network."""
        self._loop.call_soon_threadsafe(self._door.set, SHUT)

    def open(self) -> None:
        """Heal it; what was under way comes late."""
        self._loop.call_soon_threadsafe(self._door.set, OPEN)

    def stop(self) -> None:
        """Close it, with its connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        await self._door.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # in which what was closed comes to its end


@contextlib.contextmanager
def door_to(url: str) -> Iterator[DoorInThread]:
    """A door before the server of a Unix URL, for the block."""
    door = DoorInThread(urlsplit(url).path)
    try:
        yield door
    finally:
        door.stop()
