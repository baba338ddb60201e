"""One connection to Redis on which commands do not wait for one another: answers come in the order of the commands.

redis-py opens it, because it knows URLs, TLS and logins, and then steps aside: checking a connection out of its pool
and carrying one command over it costs more than all else that a call does here. What is sent needs no buffer of its
own: every caller waits for its answer, so no more is under way than callers hold anyway.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import hiredis
from redis.exceptions import ConnectionError

from agentpool.clock import monotonic

__all__ = ["Link", "Listener"]

_NOTHING = object()


class Link(asyncio.Protocol):
    """Sends commands and hands out their answers, until it is lost; it does not come back."""

    def __init__(self, opened: Any) -> None:
        """Take over a connection of redis-py that is open and has nothing unread."""
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Why it was lost, once it is."""
        self._loop = self.lost.get_loop()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._heard_at = monotonic()
        self.was_answered = False
        """Whether anything ever came."""
        self._reader = hiredis.Reader(
            replyError=opened._parser.parse_error,
            encoding=opened.encoder.encoding,
            errors=opened.encoder.encoding_errors,
            notEnoughData=_NOTHING,
        )
        reader, self._writer = opened._reader, opened._writer  # a writer that nobody holds closes its transport
        opened._reader = opened._writer = None
        self._transport = self._writer.transport
        if reader._eof or reader._buffer or self._transport.is_closing():
            # The end, or what came before it, like a refusal, was told to the reader already, and is not told again.
            self.fail(ConnectionError("Connection closed by server."))
        else:
            self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Tell whether commands may be sent."""
        return not self.lost.done()

    @property
    def silent_s(self) -> float:
        """Seconds since it was last heard, or, of what was always answered, since the oldest unanswered command."""
        return monotonic() - self._heard_at

    def send(self, words: tuple[Any, ...]) -> "asyncio.Future[Any]":
        """Send a command; returns its answer to come, which may be cancelled without harm to others."""
        return self._sent(hiredis.pack_command(words), 1)[0]

    def send_all(self, commands: Iterable[tuple[Any, ...]]) -> "list[asyncio.Future[Any]]":
        """Send commands together."""
        packed = [hiredis.pack_command(words) for words in commands]
        return self._sent(b"".join(packed), len(packed))

    def _sent(self, packed: bytes, count: int) -> "list[asyncio.Future[Any]]":
        if self.lost.done():
            raise self.lost.result()  # nobody would hear of an answer any more
        if not self._waiting:
            self._heard_at = monotonic()
        self._transport.write(packed)
        answers = [self._loop.create_future() for _ in range(count)]
        self._waiting.extend(answers)
        return answers

    def take(self, answer: Any) -> None:
        """Hand an answer to who waits for it."""
        waiting = self._waiting.popleft()
        if waiting.done():
            return  # cancelled
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Close it; those who wait get the error."""
        self._transport.abort()
        if self.lost.done():
            return
        self.lost.set_result(error)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)
        self._waiting.clear()

    def close(self) -> None:
        """Close it; may be called twice."""
        self.fail(ConnectionError("The connection was closed."))

    # -- what the loop calls ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard_at, self.was_answered = monotonic(), True
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOTHING:
                self.take(answer)
        except Exception as error:  # noqa: BLE001 (no answer after it can be trusted)
            self.fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(ConnectionError(f"Connection lost: {error}" if error else "Connection closed by server."))


class Listener(Link):
    """A link for a subscription: whatever comes is passed on, and an error ends it."""

    def __init__(self, opened: Any, on_answer: Callable[[list[Any]], None]) -> None:
        self._on_answer = on_answer
        super().__init__(opened)

    def write(self, *words: Any) -> None:
        """Send a command; what it is answered is passed on."""
        self._transport.write(hiredis.pack_command(words))

    def take(self, answer: Any) -> None:
        if isinstance(answer, Exception):
            raise answer
        self._on_answer(answer)
