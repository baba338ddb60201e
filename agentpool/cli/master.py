"""`agentpool-master`: run the daemon, or check what it is told."""

import asyncio
import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import click
from rich_click import RichGroup

from agentpool.cli.ending import guarded
from agentpool.config import Loaded, load
from agentpool.errors import AgentPoolError
from agentpool.version import __version__

__all__ = ["main"]

PROGRAM = "agentpool-master"

FLAGS = (
    click.option("--config", "config", metavar="FILE", help="Configuration file."),
    click.option("--data-dir", metavar="DIR", help="Where the embedded server and this host's identity are kept."),
    click.option("--redis-url", metavar="URL", help="Use this Redis; without one the embedded server is started."),
    click.option("--embedded", is_flag=True, default=None, help="Use the embedded server, whatever else is set."),
    click.option("--app-dir", metavar="DIR", help="Folder from which agent modules are imported. Default: here."),
    click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged."),
    click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="auto: JSON off a terminal."),
)


def flags(command: Any) -> Any:
    """Give a command the flags that override the configuration."""
    for option in reversed(FLAGS):
        command = option(command)
    return command


@click.group(cls=RichGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
@click.option("--json", "as_json", is_flag=True, help="Errors, and what check prints, as JSON.")
@click.option("--banner/--no-banner", default=None, help="Print where everything is. Default: on a terminal.")
@flags
@click.pass_context
def master(context: click.Context, /, as_json: bool, banner: bool | None, **given: Any) -> None:
    """Run pools of agents in worker processes. Without a sub-command: run."""
    context.obj = {"as_json": as_json, "banner": banner, "given": given}
    if context.invoked_subcommand is None:
        context.invoke(run)


@master.command()
@click.option("--banner/--no-banner", default=None, help="Print where everything is. Default: on a terminal.")
@flags
@click.pass_context
def run(context: click.Context, /, banner: bool | None = None, **given: Any) -> None:
    """Run in the foreground until SIGTERM or Ctrl-C; a second one hurries. SIGHUP reads the configuration again."""
    from agentpool.cli.banner import print_banner
    from agentpool.daemon import Daemon

    options = {**context.obj["given"], **_given(given)}
    wanted = context.obj["banner"] if banner is None else banner
    show = sys.stdout.isatty() if wanted is None else wanted
    daemon = Daemon(partial(_load, options), print_banner if show else None, _words(options))
    asyncio.run(daemon.run())
    if daemon.is_succeeded:
        daemon.make_room()


@master.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@flags
@click.pass_context
def check(context: click.Context, /, as_json: bool, **given: Any) -> None:
    """Print every error and warning of the configuration and of the server; exit 1 when there are errors."""
    from agentpool.cli.checking import check_everything, print_findings

    options = {**context.obj["given"], **_given(given)}
    findings = check_everything(partial(_load, options))
    print_findings(findings, as_json=as_json or context.obj["as_json"])
    sys.exit(1 if findings.errors else 0)


@master.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--timeout", type=float, default=600.0, show_default=True, metavar="S", help="Wait at most.")
@flags
@click.pass_context
def upgrade(context: click.Context, /, as_json: bool, timeout: float, **given: Any) -> None:
    """Have the master of this host go on as the release that is installed now, and replace its workers one by one.

    What is installed and configured is checked first. Agents move when their worker's successor is there; tasks that
    run are waited for. Also brings new code of the agents.
    """
    from agentpool.cli.upgrading import print_done, upgrade_master

    options = {**context.obj["given"], **_given(given)}
    as_json = as_json or context.obj["as_json"]
    done = asyncio.run(upgrade_master(_load(options).settings, timeout, quiet=as_json))
    print_done(done, as_json=as_json)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Return options as they stand on a command line."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)] if value not in (None, False) else []
    return words


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _load(options: Mapping[str, Any]) -> Loaded:
    rest = {name: value for name, value in options.items() if name != "config" and value is not None}
    return load(config_path=options.get("config"), flags=rest)


def main() -> None:
    """Run the command; refusals are one clear text on stderr and exit status 1."""
    guarded(PROGRAM, _run_command, as_json="--json" in sys.argv)


def _run_command() -> None:
    try:
        master(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AgentPoolError as error:
        _print_error(error)
        sys.exit(1)


def _print_error(error: AgentPoolError) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"code": error.code, "message": str(error)}}), file=sys.stderr)
    else:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
