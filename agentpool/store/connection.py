"""How Redis is reached, and how its errors become ours.

redis-py's own retries are off: it cannot know which commands may be repeated. Ours may, all of them (each script says
in its header what a repeat does), so `Connection.call` repeats them with jittered delays until a deadline, and then
raises `RedisUnavailable`.
"""

import asyncio
import builtins
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from agentpool.clock import monotonic
from agentpool.config import redact_url
from agentpool.errors import RedisUnavailable
from agentpool.periodic import expire_after
from agentpool.protocol.keys import Keys
from agentpool.store.link import Link, Listener
from agentpool.store.scripts import LIBRARY_PREFIX, is_known_library, is_unknown_script, library, script

__all__ = ["Connection", "SyncConnection", "translate"]

T = TypeVar("T")

RETRY_DELAY_MAX = 0.5
OPEN_DELAY_MIN = 0.01
LAST_TRY_MIN = 0.02
"""Seconds that a further try needs at least."""
CONNECTIONS_MAX = 64
SILENT_PART = 0.5
"""A link from which nothing came for this part of the command timeout, while a caller gave up, is taken for dead."""


def translate(error: Exception, url: str) -> RedisUnavailable:
    """Return our error for one of redis-py's, saying what to do next."""
    place = redact_url(url)
    text = (str(error) or type(error).__name__).rstrip(".")
    if _is_login(error):
        return RedisUnavailable(f"Redis at {place} refused the login: {text}. Check user and password in the URL.")
    if isinstance(error, NoPermissionError) or "NOPERM" in text:
        return RedisUnavailable(f"Redis at {place} does not permit this: {text}. Widen the user's ACL.")
    if "Too many open files" in text:
        return RedisUnavailable(
            f"Redis at {place} cannot be reached: {text}. This process has no file descriptors left: close some, or "
            "raise its limit (ulimit -n)."
        )
    if isinstance(error, OutOfMemoryError):
        return RedisUnavailable(
            f"Redis at {place} is out of memory and takes no new work; what it has goes on and makes room. Raise "
            f"maxmemory, or wait: {text}"
        )
    if isinstance(error, ReadOnlyError):
        return RedisUnavailable(f"Redis at {place} takes no writes: {text}. Point the URL at a writable primary.")
    if isinstance(error, ResponseError) and text.startswith(("MISCONF", "NOREPLICAS")):
        return RedisUnavailable(
            f"Redis at {place} takes no writes: {text}. Look at its log, its disk and its replicas."
        )
    if isinstance(error, ResponseError):
        return RedisUnavailable(f"Redis at {place} refused a command: {text}. Run: agentpool-master check")
    return RedisUnavailable(f"Redis at {place} does not answer: {text}. Is it running? Run: agentpool-master check")


def _run_in(info: str) -> str:
    """Return the id of the run in what INFO says of the server."""
    _, _, rest = info.partition("run_id:")
    return rest.split(maxsplit=1)[0] if rest else ""


def is_passing(error: Exception) -> bool:
    """Tell whether a repeat may help: the server is away, starting, or slow."""
    return isinstance(error, ConnectionError | TimeoutError | OSError) and not _is_login(error)


def _is_login(error: Exception) -> bool:
    """Tell whether the login was refused: redis-py's asynchronous connections wrap that in a ConnectionError."""
    return isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError)


def _no_url(url: str, error: ValueError) -> RedisUnavailable:
    return RedisUnavailable(f"{redact_url(url)} is no Redis URL: {error}. Use redis://host:port/db or unix:///path")


class Connection:
    """How one server is reached from a loop, with the names of its keys.

    Calls share one link; what waits, or is asked seldom, goes over connections of redis-py.
    """

    def __init__(
        self, url: str, *, namespace: str = "", connect_timeout: float = 5.0, command_timeout: float = 5.0
    ) -> None:
        self.url = url
        self.timeout = command_timeout
        self._connect_timeout = connect_timeout
        try:
            # Blocking: callers above the bound wait for their turn instead of failing.
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",  # what a stranger wrote must not raise where it is read
                protocol=2,  # one greeting less for each new connection
                socket_connect_timeout=connect_timeout,
                # `repeat` bounds each try. With a timeout here redis-py sends through asyncio.wait_for, which costs a
                # task a command and, before Python 3.12, now and then loses the cancellation of its caller.
                socket_timeout=None,
                retry=AsyncRetry(NoBackoff(), 0),
                driver_info=None,  # else each new connection reads redis-py's package metadata from disk
                max_connections=CONNECTIONS_MAX,
                timeout=command_timeout,
            )
        except ValueError as error:
            raise _no_url(url, error) from None
        self.redis: Any = redis.asyncio.Redis.from_pool(pool)
        """For what is asked seldom: a command costs several times as much as with `ask`."""
        self._link: Link | None = None
        self._links = 0
        self._opening = asyncio.Lock()
        self._unopened: tuple[float, float, str] | None = None
        """Until when nobody tries to open a link again, the delay that this was, and why it failed last."""
        self._loading, self._loads = asyncio.Lock(), 0
        db = int(pool.connection_kwargs.get("db") or 0)
        self.keys = Keys(namespace, db)

    @property
    def link_number(self) -> int:
        """Which link the next call goes over: another one may lead to a server that has started anew. 0: a new one."""
        return self._links if self._link is not None and self._link.is_open else 0

    async def call(
        self, name: str, pool: str, *arguments: Any, timeout: float | None = None, repeats: bool = True
    ) -> Any:
        """Run a script; repeats it while Redis is away, until `timeout` s (default: the command timeout)."""
        prepared = script(name)
        words = prepared.command(self.keys, pool, arguments)
        deadline = monotonic() + (self.timeout if timeout is None else timeout)
        failed: Exception | None = None
        if self._link is not None and self._link.is_open:  # as nearly always: the short way
            try:
                return await self._execute_in_time(self._link, words, deadline)
            except (RedisError, OSError) as error:
                failed = None if is_unknown_script(error) else error

        async def once() -> Any:
            loads = self._loads
            try:
                return await self._execute(words)
            except ResponseError as error:
                if not is_unknown_script(error):
                    raise
            try:
                await self._load(loads)
            except OutOfMemoryError:  # what ends tasks and frees memory must run all the same
                return await self._execute(prepared.command_by_text(self.keys, pool, arguments))
            return await self._execute(words)

        return await self._repeat(once, deadline, failed, repeats=repeats)

    async def _execute_in_time(self, link: Link, words: tuple[Any, ...], deadline: float) -> Any:
        """Execute a command once, as `repeat` does, at a third of the cost."""
        answer = link.send(words)
        late = expire_after(answer, max(0.0, min(self.timeout, deadline - monotonic())))
        try:
            return await answer
        except (asyncio.CancelledError, builtins.TimeoutError):
            self._close_if_silent(link)
            raise
        finally:
            late.cancel()

    async def _load(self, loads: int) -> None:
        """Load the scripts, unless that was done since `loads`: it takes the server about 10 ms, and all who call now
        miss them together.
        """
        async with self._loading:
            if self._loads == loads:
                try:
                    await self._execute(("FUNCTION", "LOAD", library().text))
                except ResponseError as error:
                    if not is_known_library(error):
                        raise
                self._loads += 1

    async def forget_old_scripts(self) -> None:
        """Drop the scripts of other releases, as far as that is permitted. One that still runs loads its own again.

        When memory is full none can be loaded; so nothing is dropped unless our own are there.
        """
        with contextlib.suppress(RedisUnavailable):
            found = await self.ask("FUNCTION", "LIST", "LIBRARYNAME", f"{LIBRARY_PREFIX}*")
            names = {dict(zip(fields[::2], fields[1::2], strict=True))["library_name"] for fields in found}
            if library().name not in names:
                await self.repeat(partial(self._load, self._loads))
            for name in names - {library().name}:
                await self.ask("FUNCTION", "DELETE", name)

    async def ask(self, *words: Any, timeout: float | None = None) -> Any:
        """Send one command that may be repeated and return its answer; otherwise like `call`."""
        return await self.repeat(lambda: self._execute(words), timeout)

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands that may be repeated, together, and return their answers."""
        return await self.repeat(lambda: self._answered(lambda link: asyncio.gather(*link.send_all(commands))))

    async def _execute(self, words: tuple[Any, ...]) -> Any:
        return await self._answered(lambda link: link.send(words))

    async def _answered(self, send: Callable[[Link], Awaitable[T]]) -> T:
        link = self._link
        if link is None or not link.is_open:
            link = await self._open_link()
        try:
            return await send(link)
        except asyncio.CancelledError:  # also what a deadline does
            self._close_if_silent(link)
            raise

    def _close_if_silent(self, link: Link) -> None:
        """Pass over an answer that is not waited for any more when it comes; without any, use the link no longer."""
        if link.silent_s >= self.timeout * SILENT_PART:
            link.close()

    async def _open_link(self) -> Link:
        async with self._opening:
            link = self._link
            if link is None or not link.is_open:
                link = self._link = await self._opened_for_all(link)
            return link

    async def _opened_for_all(self, before: Link | None) -> Link:
        """Open a link for all who call. When that fails, or it ends before it answers, they share the failure: however
        many wait for a server that is away, it is tried a few times in a second.
        """
        if before and before.was_answered:
            self._unopened = None
        elif before:
            self._link = None
            self._put_off(before.lost.result())
        if self._unopened and monotonic() < self._unopened[0]:
            raise ConnectionError(self._unopened[2])
        try:
            link = Link(await self._opened())
        except (RedisError, OSError) as error:
            if is_passing(error):
                self._put_off(error)
            raise
        self._links += 1
        return link

    def _put_off(self, error: Exception) -> None:
        delay = min(2 * self._unopened[1], RETRY_DELAY_MAX) if self._unopened else OPEN_DELAY_MIN
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 (no secret)
        self._unopened = (monotonic() + delay * jitter, delay, str(error))

    async def listen(self, on_answer: Callable[[list[Any]], None]) -> Listener:
        """Return a connection of its own for a subscription."""
        return Listener(await self._opened(), on_answer)

    async def _opened(self) -> Any:
        connection = self.redis.connection_pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def repeat(
        self, once: Callable[[], Awaitable[T]], timeout: float | None = None, *, repeats: bool = True
    ) -> Coroutine[Any, Any, T]:
        """Await `once()` again while Redis is away; raises `RedisUnavailable` at the deadline or when refused. Without
        `repeats` it is tried once.
        """
        return self._repeat(once, monotonic() + (self.timeout if timeout is None else timeout), repeats=repeats)

    async def _repeat(
        self,
        once: Callable[[], Awaitable[T]],
        deadline: float,
        failed: Exception | None = None,
        *,
        repeats: bool = True,
    ) -> T:
        """`failed`: why the first try failed already."""
        delay = 0.01
        while True:
            try:
                if failed:
                    raise failed
                async with asyncio.timeout(max(0.0, min(self.timeout, deadline - monotonic()))):
                    return await once()
            except (RedisError, OSError) as error:
                failed = None
                pause = delay * random.uniform(0.5, 1.5)  # noqa: S311 (jitter, no secret)
                # Who has no time left does not try: a connection that is begun and given up is one more for a server
                # that is away.
                if not (repeats and is_passing(error)) or monotonic() + pause + LAST_TRY_MIN >= deadline:
                    raise translate(error, self.url) from None
            await asyncio.sleep(pause)
            delay = min(delay * 2, RETRY_DELAY_MAX)

    async def server_run(self, timeout: float | None = None) -> str:
        """Return the id of the server's run: another one than before means that it has started anew, and may lack its
        latest writes. '' where the user may not read it.
        """

        async def once() -> str:
            try:
                return _run_in(await self._execute(("INFO", "server")))
            except NoPermissionError:
                return ""

        return await self.repeat(once, timeout)

    async def now_ms(self) -> int:
        """Return Redis time in ms."""
        seconds, microseconds = await self.ask("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    def dedicated(self) -> Any:
        """Return a client for one connection on which to wait without a deadline, like a subscription's."""
        return redis.asyncio.Redis.from_url(
            self.url,
            decode_responses=True,
            encoding_errors="replace",  # what a stranger wrote must not raise where it is read
            protocol=2,  # its subscriptions answer a ping with a message
            socket_connect_timeout=self._connect_timeout,
            socket_timeout=None,
            retry=AsyncRetry(NoBackoff(), 0),
            driver_info=None,
        )

    async def close(self) -> None:
        """Close every connection; may be called twice."""
        if self._link:
            self._link.close()
        await self.redis.aclose()


class SyncConnection:
    """A blocking connection for a thread without a loop: one try a call, so that the caller keeps its rhythm."""

    def __init__(self, url: str, *, namespace: str = "", timeout: float = 2.0) -> None:
        self.url = url
        try:
            self.redis: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",  # what a stranger wrote must not raise where it is read
                socket_connect_timeout=timeout,
                socket_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # needs no greeting, so the first answer comes one round trip sooner
                driver_info=None,
                max_connections=2,
            )
        except ValueError as error:
            raise _no_url(url, error) from None
        # Calls go over one connection, past the client's pool: a heartbeat costs half, and there are many workers.
        self._link: Any = self.redis.connection_pool.make_connection()
        db = int(self.redis.connection_pool.connection_kwargs.get("db") or 0)
        self.keys = Keys(namespace, db)

    def call(self, name: str, pool: str, *arguments: Any) -> Any:
        """Run a script once; raises `RedisUnavailable`."""
        prepared = script(name)
        words = prepared.command(self.keys, pool, arguments)
        try:
            try:
                return self._execute(words)
            except ResponseError as error:
                if not is_unknown_script(error):
                    raise
            try:
                self._execute(("FUNCTION", "LOAD", library().text))
            except OutOfMemoryError:
                return self._execute(prepared.command_by_text(self.keys, pool, arguments))
            except ResponseError as error:
                if not is_known_library(error):
                    raise
            return self._execute(words)
        except (RedisError, OSError) as error:
            raise translate(error, self.url) from None

    def server_run(self) -> str:
        """Return the id of the server's run, '' where the user may not read it; raises `RedisUnavailable`."""
        try:
            return _run_in(self._execute(("INFO", "server")))
        except NoPermissionError:
            return ""
        except (RedisError, OSError) as error:
            raise translate(error, self.url) from None

    def _execute(self, words: tuple[Any, ...]) -> Any:
        """Send a command and read its answer; redis-py connects first if need be, and disconnects on errors."""
        self._link.send_command(*words)
        return self._link.read_response()

    def ping(self) -> None:
        """Return when the server answers, whatever it says; raises `RedisUnavailable`."""
        try:
            self._execute(("PING",))
        except ResponseError:
            pass  # not permitted, perhaps: an answer all the same
        except (RedisError, OSError) as error:
            raise translate(error, self.url) from None

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._link.disconnect()
        self.redis.close()
