"""`agentpool submit`, `tasks`, `dead` and `audit`: single tasks, from being handed in to what is left of them."""

import sys
from collections.abc import Callable
from typing import Any

import click

from agentpool.cli import output
from agentpool.cli.root import PROGRAM, command, group, say, show
from agentpool.cli.session import Session
from agentpool.errors import AgentPoolError
from agentpool.protocol.states import OUTCOMES

__all__: list[str] = []

EXECUTIONS = sorted({*map(str, OUTCOMES), "retried", "given_back"})
"""What an execution may have come to."""


@command("submit")
@click.argument("pool")
@click.argument("agent_type", metavar="TYPE")
@click.option("--input", "text", required=True, metavar="JSON|@FILE|-", help="Input as JSON, a file, or - for stdin.")
@click.option("--tenant", help="For whom. Default: default.")
@click.option("--project", help="A label for grouping.")
@click.option("--priority", type=int, metavar="0-9", help="0 is most urgent. Default: 5.")
@click.option("--timeout", type=float, metavar="S", help="Seconds that its run may take.")
@click.option("--key", help="The same key means the same task: a repeat gives its id.")
@click.option("--delay", type=float, metavar="S", help="Seconds until it may begin.")
@click.option("--expires", type=float, metavar="S", help="Seconds in which it must have begun.")
@click.option("--batch", is_flag=True, help="Only when nothing else can run.")
@click.option("--retry-attempts", type=click.IntRange(min=1), metavar="N", help="How often it is tried in all.")
@click.option("--requires", multiple=True, metavar="LABEL", help="A label that its worker must have; may be repeated.")
@click.option(
    "--when-limited", type=click.Choice(["queue", "reject"]), help="At a limit of its tenant. Default: queue."
)
@click.option("--wait", is_flag=True, help="Wait for the result and print it; the task goes on without us.")
def submit(session: Session, pool: str, agent_type: str, text: str, **options: Any) -> None:
    """Hand in a task for any agent of a type, and print its id."""
    from agentpool.cli import asks
    from agentpool.cli.inputs import read_input

    input = read_input(text)
    task_id, result = session.run(lambda client: asks.submit(client, pool, agent_type, input, **options))
    if not options["wait"]:
        say(session, {"task_id": task_id}, task_id)
    elif session.as_json:
        output.print_json({"task_id": task_id, "result": result})
    else:
        asks.print_result(result, as_json=False)


# -- tasks ------------------------------------------------------------------------------------------------------


@group("tasks")
def tasks() -> None:
    """Look at single tasks, follow and cancel them."""


@command("show", tasks)
@click.argument("task_id")
def show_task(session: Session, task_id: str) -> None:
    """Show a task: its state, and its result or what went wrong."""
    from agentpool.cli import task_views

    found = session.run(lambda client: task_views.task(client, task_id))
    if session.as_json:
        output.print_json(found)
    else:
        output.print_sheet(*task_views.task_sheet(found))


@command("cancel", tasks)
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK_ID…")
def cancel(session: Session, task_ids: tuple[str, ...]) -> None:
    """Cancel tasks: at once while they wait, through their workers while they run."""
    from agentpool.cli import asks

    rows, error = session.run(lambda client: asks.cancel(client, task_ids))
    if rows:
        show(session, rows, {"task_id": "task", "cancelled": "cancelled"}, "", _cancel_cells)
    if error:
        raise error


def _cancel_cells(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "cancelled": "yes" if row["cancelled"] else "no: it was finished"}


@command("follow", tasks)
@click.argument("task_id")
def follow(session: Session, task_id: str) -> None:
    """Print what happens to a task, and what its agent reports, until it is finished."""
    from agentpool.cli import task_views

    session.run(lambda client: task_views.follow_task(client, task_id, as_json=session.as_json))


# -- dead letters -----------------------------------------------------------------------------------------------


@group("dead")
def dead() -> None:
    """Dead letters: tasks that are not tried again. List, show, replay them, or throw them away."""


FILTERS = (
    click.option("--type", "agent_type", default="", metavar="TYPE", help="Only those for agents of this type."),
    click.option("--tenant", default="", help="Only this tenant's."),
    click.option("--older-than", type=float, metavar="S", help="Only those that died so many seconds ago, or earlier."),
)
CHOICE = (
    click.argument("task_ids", nargs=-1, metavar="[TASK_ID…]"),
    click.option("--all", "is_all", is_flag=True, help="All of a pool that fit, instead of single ones."),
    click.option("--pool", help="With --all: of this pool."),
    click.option("--yes", "-y", "is_sure", is_flag=True, help="With --all: do not ask."),
)


def _with(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@command("list", dead)
@click.argument("pool", required=False)
@_with(*FILTERS)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The oldest ones, at most.")
def list_letters(session: Session, pool: str | None, limit: int, **filters: Any) -> None:
    """List the dead letters of one pool or of all, oldest first."""
    from agentpool.cli import task_views

    rows = session.run(lambda client: task_views.letters(client, pool, limit, **filters))
    show(session, rows, output.LETTER_COLUMNS, "No dead letters.", task_views.letter_cells)


@command("show", dead)
@click.argument("task_id")
def show_letter(session: Session, task_id: str) -> None:
    """Show a dead letter: its input, and the error and worker of each attempt."""
    from agentpool.cli import task_views

    found = session.run(lambda client: task_views.letter(client, task_id))
    if session.as_json:
        output.print_json(found)
    else:
        output.print_sheet(*task_views.letter_sheet(found))


@command("replay", dead)
@_with(*CHOICE, *FILTERS)
def replay(session: Session, **choice: Any) -> None:
    """Submit dead tasks anew, each as another task."""
    from agentpool.cli import asks

    ids = _chosen(session, "submit {} dead tasks anew", **choice)
    rows, error = session.run(lambda client: asks.replay(client, ids))
    if rows or not error:
        show(session, rows, {"task_id": "dead letter", "new_task_id": "new task"}, "No dead letters.")
    if error:
        raise error


@command("purge", dead)
@_with(*CHOICE, *FILTERS)
def purge(session: Session, **choice: Any) -> None:
    """Throw dead letters away, for good."""
    from agentpool.cli import asks

    ids = _chosen(session, "throw {} dead letters away for good", **choice)
    gone = session.run(lambda client: asks.purge(client, ids))
    say(session, {"purged": gone}, f"{gone} dead letters thrown away.")


def _chosen(
    session: Session,
    what: str,
    *,
    task_ids: tuple[str, ...],
    is_all: bool,
    pool: str | None,
    is_sure: bool,
    **filters: Any,
) -> list[str]:
    """Return the ids that are meant, after a person was asked about more than was named."""
    from agentpool.cli import asks

    if bool(task_ids) == is_all:
        raise click.UsageError("Give the ids of dead letters, or --all with --pool.")
    if not is_all:
        if pool or any(filters.values()):
            raise click.UsageError("--pool, --type, --tenant and --older-than go with --all.")
        return list(task_ids)
    if not pool:
        raise click.UsageError("--all needs the pool that is meant: --pool NAME.")
    ids: list[str] = session.run(lambda client: asks.letter_ids(client, pool, **filters))
    asks_first = ids and not is_sure and sys.stdin.isatty() and sys.stderr.isatty()
    if asks_first and not click.confirm(f"Pool {pool}: {what.format(len(ids))}?", err=True):
        raise AgentPoolError("Nothing was done.")
    return ids


# -- the audit --------------------------------------------------------------------------------------------------


@command("audit")
@click.argument("pool", required=False)
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--task", "task_id", default="", metavar="TASK_ID", help="Only those of this task.")
@click.option("--type", "agent_type", default="", metavar="TYPE", help="Only those by agents of this type.")
@click.option("--status", type=click.Choice(EXECUTIONS), help="Only those that came to this.")
@click.option("--since", type=click.FloatRange(min=0), metavar="S", help="Only those of the last so many seconds.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The latest ones, at most.")
def audit(session: Session, pool: str | None, status: str | None, **wanted: Any) -> None:
    """Show executions of tasks: who had what done, when, where, and what came of it.

    Read from the files of this host's master and from Redis. With --json each is a line of its own.
    """
    from agentpool.cli import task_views
    from agentpool.client.audit import AuditQuery

    query = AuditQuery(status=status or "", **wanted)
    rows, notes = session.run(lambda client: task_views.audit(client, pool, query))
    if session.as_json:
        for row in rows:
            output.print_json(row)
    else:
        cells = [task_views.execution_cells(row) for row in rows]
        output.print_rows(cells, output.EXECUTION_COLUMNS, empty="No executions.")
    for note in notes:
        output.print_note(PROGRAM, note)
