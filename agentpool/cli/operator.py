"""`agentpool`: look at pools, and ask for things. Thin: what is asked is in `agentpool.client`."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from agentpool.cli import output, tasks, tenants
from agentpool.cli.ending import guarded
from agentpool.cli.raw_words import RawCommand
from agentpool.cli.root import PROGRAM, command, operator, say, show
from agentpool.cli.session import INTERRUPTED, Session
from agentpool.errors import AgentPoolError
from agentpool.protocol.states import AGENT_MOVES

__all__ = ["GROUPS", "main", "operator"]

GROUPS = (tasks, tenants)
"""Modules with further sub-commands."""
RAW_SETTINGS = {"help_option_names": ["--help"], "allow_interspersed_args": False}
LIVE = [str(status) for status, moves in AGENT_MOVES.items() if moves]


# -- looking ----------------------------------------------------------------------------------------------------


@command("pools")
def pools(session: Session) -> None:
    """List the pools and their settings."""
    from agentpool.cli import views

    rows = session.run(views.pools)
    show(session, rows, output.POOL_COLUMNS, "No pools. Start agentpool-master with a configuration that has some.")


@command("stats")
@click.argument("pool", required=False)
def stats(session: Session, pool: str | None) -> None:
    """Show the numbers of one pool or of all."""
    from agentpool.cli import views

    found = session.run(lambda client: views.stats(client, pool))
    if session.as_json:
        output.print_json(found)
    elif pool:
        output.print_sheet(*views.stats_sheet(found))
    else:
        output.print_rows(found, output.STATS_COLUMNS, empty="No pools.")


@command("workers")
@click.argument("pool", required=False)
def workers(session: Session, pool: str | None) -> None:
    """List the worker processes of one pool or of all."""
    from agentpool.cli import views

    rows = session.run(lambda client: views.workers(client, pool))
    show(session, rows, output.WORKER_COLUMNS, "No workers.", views.worker_cells)


@command("hosts")
@click.argument("pool", required=False)
def hosts(session: Session, pool: str | None) -> None:
    """List the hosts that have a master, with their room, of one pool or of all."""
    from agentpool.cli import views

    rows = session.run(lambda client: views.hosts(client, pool))
    show(session, rows, output.HOST_COLUMNS, "No hosts. Start agentpool-master on some.", views.host_cells)


@command("agents")
@click.argument("pool", required=False)
@click.option("--tenant", help="Only this tenant's.")
@click.option("--project", help="Only this project's.")
@click.option("--status", type=click.Choice(LIVE), help="Only those with this status.")
def agents(session: Session, pool: str | None, **filters: str | None) -> None:
    """List the live agents of one pool or of all."""
    from agentpool.cli import views

    rows = session.run(lambda client: views.agents(client, pool, **filters))
    show(session, rows, output.AGENT_COLUMNS, "No agents.", views.agent_cells)


@command("events")
@click.argument("pool", required=False)
@click.option("--follow", "-f", is_flag=True, help="Print events from now on, as they come.")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True, help="The latest ones, at most.")
def events(session: Session, pool: str | None, follow: bool, limit: int) -> None:
    """Show what happened in one pool or in all."""
    from agentpool.cli import views

    if follow:
        session.run(lambda client: views.follow(client, pool, as_json=session.as_json))
        return
    rows = session.run(lambda client: views.events(client, pool, limit))
    show(session, rows, output.EVENT_COLUMNS, "No events.", views.event_cells)


@command("doctor")
@click.option("--repair", is_flag=True, help="Mend what can be mended safely, and say what was done.")
@click.option(
    "--settle", type=click.FloatRange(min=0), metavar="S", help="A fault counts when it lasts this long; default 0.6."
)
def doctor(session: Session, repair: bool, settle: float | None) -> None:
    """Check that what is in Redis and on this host fits together; exit 1 when something does not, or still does not."""
    from agentpool.cli import views

    report = session.run(lambda client: views.report(client, repair=repair, settle=settle))
    if session.as_json:
        output.print_json(report)
    else:
        for title, rows, columns in (
            ("Mended:", report.get("mended", []), output.MENDED_COLUMNS),
            ("Left, with what to do:", report.get("left", []), output.LEFT_COLUMNS),
        ):
            if rows:
                print(title)
                output.print_rows(rows, columns, empty="")
        if not report.get("left"):
            output.print_rows(report["violations"], output.VIOLATION_COLUMNS, empty="All invariants hold.")
    sys.exit(1 if report["violations"] else 0)


# -- asking -----------------------------------------------------------------------------------------------------


@command("spawn")
@click.argument("pool")
@click.option("--type", "agent_type", required=True, metavar="TYPE", help="Agent type: the name of its class.")
@click.option("--id", "name", metavar="NAME", help="Name of the agent; generated when not given.")
@click.option("--tenant", default="default", show_default=True, help="Who owns it.")
@click.option("--project", help="A label for grouping.")
@click.option("--count", type=int, default=1, show_default=True, help="How many, all at once.")
@click.option("--max-idle-time", type=float, metavar="S", help="End it when unused for this many seconds.")
@click.option("--heartbeat-interval", type=float, metavar="S", help="Ask it for its health this often.")
@click.option("--timeout", type=float, default=30.0, show_default=True, metavar="S", help="Wait at most.")
def spawn(session: Session, pool: str, **wanted: Any) -> None:
    """Start agents, and wait until they are ready."""
    from agentpool.cli import asks

    spawned, error = session.run(lambda client: asks.spawn(client, pool, **wanted))
    if spawned:
        show(session, spawned, output.SPAWN_COLUMNS, "")
    if error:
        raise error


@command("terminate")
@click.argument("agent_ids", nargs=-1, required=True, metavar="AGENT_ID…")
def terminate(session: Session, agent_ids: tuple[str, ...]) -> None:
    """End agents for good; what waits for them fails."""
    from agentpool.cli import asks

    ended = session.run(lambda client: asks.terminate(client, agent_ids))
    show(session, ended, {"agent_id": "agent", "status": "status"}, "")


@command("run")
@click.argument("pool")
@click.option("--type", "agent_type", metavar="TYPE", help="Any agent of this type.")
@click.option("--agent", "agent_id", metavar="ID", help="This agent.")
@click.option("--input", "text", required=True, metavar="JSON|@FILE|-", help="Input as JSON, a file, or - for stdin.")
@click.option("--tenant", help="For whom; with --type.")
@click.option("--priority", type=int, metavar="0-9", help="0 is most urgent; with --type. Default: 5.")
@click.option("--timeout", type=float, metavar="S", help="Give the task up after this many seconds.")
def run(session: Session, pool: str, agent_type: str | None, agent_id: str | None, text: str, **options: Any) -> None:
    """Run one task and print its result."""
    from agentpool.cli import asks
    from agentpool.cli.inputs import read_input

    if (agent_type is None) == (agent_id is None):
        raise click.UsageError("Give either --type or --agent.")
    if agent_id and (options["tenant"] or options["priority"] is not None):
        raise click.UsageError("--tenant and --priority go with --type: an agent has a tenant and a mailbox.")
    input = read_input(text)
    result = session.run(lambda client: asks.run(client, pool, agent_type, agent_id, input, **options))
    asks.print_result(result, as_json=session.as_json)


@command("drain")
@click.argument("worker_id")
def drain(session: Session, worker_id: str) -> None:
    """Have a worker finish, hand its agents over and leave."""
    session.run(lambda client: client.drain(worker_id))
    done = {"process_id": worker_id, "status": "draining"}
    say(session, done, f"Worker {worker_id} drains. Watch: agentpool events --follow")


@command("scale")
@click.argument("pool")
@click.option("--workers", type=int, required=True, metavar="N", help="Workers to keep.")
def scale(session: Session, pool: str, workers: int) -> None:
    """Set how many workers a pool keeps, between its min_workers and max_workers."""
    session.run(lambda client: client.pool(pool).scale(workers))
    say(session, {"pool_name": pool, "workers": workers}, f"Pool {pool} keeps {workers} worker(s).")


@command("redis", cls=RawCommand, context_settings=RAW_SETTINGS)
@click.argument("words", nargs=-1, required=True, metavar="COMMAND…")
def redis(session: Session, words: tuple[str, ...]) -> None:
    """Send a raw command to the Redis server, as redis-cli would.

    The long options below may stand before the command or at its very end; all other words are Redis's. Put -- before
    a command that ends with such words of its own.
    """
    from agentpool.cli import asks

    session.run(lambda client: asks.raw(client, words, as_json=session.as_json))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: exit 0 done, 1 refused or failed with one clear line, 2 used wrongly, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in words
    guarded(PROGRAM, lambda: _run_command(words, as_json=as_json), as_json=as_json)


def _run_command(words: list[str], *, as_json: bool) -> None:
    try:
        operator(words, prog_name=PROGRAM, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        if as_json:
            output.print_error(PROGRAM, error.format_message(), as_json=True, code="USAGE")
        else:
            error.show()
        sys.exit(error.exit_code)
    except AgentPoolError as error:
        output.print_error(PROGRAM, error, as_json=as_json)
        sys.exit(1)
