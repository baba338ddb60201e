"""The command `agentpool` without its sub-commands: how one is added, and how it says what it has to say."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from rich_click import RichCommand, RichGroup

from agentpool.cli import output
from agentpool.cli.session import Session, common_options, session_of
from agentpool.version import __version__

__all__ = ["PROGRAM", "DefaultGroup", "command", "group", "operator", "say", "show"]

PROGRAM = "agentpool"
SETTINGS = {"help_option_names": ["-h", "--help"]}

Row = dict[str, Any]


@click.group(cls=RichGroup, context_settings=SETTINGS)
@click.version_option(__version__, prog_name=PROGRAM)
@common_options
def operator() -> None:
    """Look at pools of agents, and ask them for things.

    Finds Redis as agentpool-master does: --redis-url, the environment, the configuration file, and last the embedded
    server of the data directory.
    """


class DefaultGroup(RichGroup):
    """A group whose sub-command `list` may be left out, as in `agentpool tenants [POOL]`."""

    DEFAULT = "list"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._with_default(args))

    def _with_default(self, args: list[str]) -> list[str]:
        """Put the default before the first word that is no option of this group and names no sub-command."""
        valued = {word for option in self.params for word in option.opts if not getattr(option, "is_flag", False)}
        at = 0
        while at < len(args) and args[at].startswith("-"):
            if args[at] in ("-h", "--help"):
                return args
            at += 2 if args[at] in valued else 1
        is_named = at < len(args) and args[at] in self.commands
        return args if is_named else [*args[:at], self.DEFAULT, *args[at:]]


def group(name: str, /, cls: type[RichGroup] = RichGroup) -> Callable[[Callable[[], None]], RichGroup]:
    """Make a function, which does nothing, a group of sub-commands."""

    def decorate(function: Callable[[], None]) -> RichGroup:
        made: RichGroup = click.group(name, cls=cls, context_settings=SETTINGS)(common_options(function))
        operator.add_command(made)
        return made

    return decorate


def command(
    name: str, /, parent: RichGroup = operator, cls: type[click.Command] = RichCommand, **settings: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a sub-command; it gets the session first."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def with_session(**given: Any) -> Any:
            return function(session_of(click.get_current_context()), **given)

        made: click.Command = click.command(name, cls=cls, **settings)(common_options(with_session))
        parent.add_command(made)
        return made

    return decorate


def show(
    session: Session,
    rows: list[Row],
    columns: dict[str, str],
    empty: str,
    cells: Callable[[Row], Row] | None = None,
) -> None:
    """Print rows: an array of documents, or a table of cells."""
    if session.as_json:
        output.print_json(rows)
    else:
        output.print_rows([cells(row) for row in rows] if cells else rows, columns, empty=empty)


def say(session: Session, document: Row, line: str) -> None:
    """Print what was done: a document, or a line."""
    if session.as_json:
        output.print_json(document)
    else:
        print(line)
