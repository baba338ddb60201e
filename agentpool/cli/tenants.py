"""`agentpool tenants`: what the tenants of a pool use, and their limits while it runs."""

import click

from agentpool.cli import output
from agentpool.cli.root import DefaultGroup, command, group, show
from agentpool.cli.session import Session

__all__: list[str] = []


@group("tenants", DefaultGroup)
def tenants() -> None:
    """Show what tenants use, as `agentpool tenants [POOL]`, and set their limits."""


@command("list", tenants)
@click.argument("pool", required=False)
def list_tenants(session: Session, pool: str | None) -> None:
    """List the tenants of one pool or of all: what each uses, and its limits. The word `list` may be left out."""
    from agentpool.cli import task_views

    rows = session.run(lambda client: task_views.tenants(client, pool))
    show(session, rows, output.TENANT_COLUMNS, "No tenants.", task_views.tenant_cells)


@command("set", tenants)
@click.argument("pool")
@click.argument("tenant")
@click.argument("words", nargs=-1, required=True, metavar="NAME=VALUE…")
def set_limits(session: Session, pool: str, tenant: str, words: tuple[str, ...]) -> None:
    """Set limits of a tenant while the pool runs; NAME= takes one back to the configuration.

    Names: weight, agents, running, tokens_per_minute, tokens_per_task, requests_per_minute, queued. 0 is no limit.
    """
    from agentpool.cli import asks, task_views

    if wrong := next((word for word in words if not word.partition("=")[0] or "=" not in word), None):
        raise click.UsageError(f"{wrong} is no NAME=VALUE.")
    row = session.run(lambda client: asks.limit_tenant(client, pool, tenant, words))
    if session.as_json:
        output.print_json(row)
    else:
        output.print_rows([task_views.tenant_cells(row)], output.TENANT_COLUMNS, empty="")
