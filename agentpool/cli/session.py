"""How a command of `agentpool` is run: its options, one client, one event loop, one exit status."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agentpool.errors import ConfigError
from agentpool.logs import configure

if TYPE_CHECKING:
    from agentpool.client import Client

__all__ = ["INTERRUPTED", "Session", "common_options", "session_of"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells know it."""


class Session(msgspec.Struct):
    """What was given before or after the sub-command; the later word wins."""

    as_json: bool = False
    redis_url: str | None = None
    data_dir: str | None = None
    config: str | None = None

    def run(self, verb: Callable[["Client"], Awaitable[Any]]) -> Any:
        """Connect, await `verb(client)` and return what it returns; Ctrl-C ends quietly."""
        configure(level="error")
        try:
            return asyncio.run(self._run(verb))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    async def _run(self, verb: Callable[["Client"], Awaitable[Any]]) -> Any:
        # Here, because it costs a tenth of a second, which --help and usage errors need not wait for.
        from agentpool.client import Client

        self._refuse_local_pools()
        # Not `connect`: what USE_MULTIPROCESSING says is meant for programs that have agents.
        async with Client(self.redis_url, data_dir=self.data_dir, config=self.config) as client:
            return await verb(client)

    def _refuse_local_pools(self) -> None:
        if (self.redis_url or "").startswith("local:"):
            raise ConfigError(
                f"--redis-url {self.redis_url}: local pools live inside the program that opened them, and this command "
                "looks into Redis. Give the URL of a server, or nothing to have it looked up."
            )


def session_of(context: click.Context) -> Session:
    """Return the session of this command line, made at first use."""
    root = context.find_root()
    root.obj = root.obj or Session()
    session: Session = root.obj
    return session


def common_options(command: Any) -> Any:
    """Give a command the options that are accepted before and after every sub-command."""
    for option in _OPTIONS:
        command = option(command)
    return command


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(session_of(context), str(parameter.name), value)


def _option(*words: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*words, expose_value=False, callback=_remember, **settings)


_OPTIONS = (
    _option("--config", metavar="FILE", help="Configuration file to look the server up in."),
    _option("--data-dir", metavar="DIR", help="Data directory whose embedded server is meant."),
    _option("--redis-url", metavar="URL", help="Redis to use: redis://…, rediss://… or unix://…"),
    _option("--json", "as_json", is_flag=True, help="Print JSON, errors too."),
)
