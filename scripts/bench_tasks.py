"""Measure the task path against its peers: `make bench-tasks`.

agentpool and the peers do the same work in turns on one Redis server; then agentpool alone is measured further. Peers
are installed into `.venv-bench` at the first use. Everything that is measured is started here and stopped again. Exit
status 1 when a figure is not what it must be.
"""

import datetime
import os
import platform
import signal
import sys

import click
import msgspec
from bench.figures import Figure, table
from bench.tasks import profiling
from bench.tasks.alone import ALONE
from bench.tasks.comparing import OWN, Measured, compare
from bench.tasks.environments import PEERS
from bench.tasks.sizes import FULL, QUICK, Sizes
from bench.tasks.standing import figures_of

from agentpool import __version__
from agentpool.redis_server import find_binary

COMPARED = "peers"


@click.command(help=__doc__)
@click.option(
    "--only", type=click.Choice([OWN, *PEERS]), multiple=True, help="Take this system alone; may be repeated."
)
@click.option(
    "--measure",
    "measures",
    type=click.Choice([COMPARED, *ALONE]),
    multiple=True,
    help=f'Measure this alone; may be repeated. "{COMPARED}": bulk, single and idle. The others are of {OWN} alone.',
)
@click.option("--tasks", type=click.IntRange(min=100), help=f"Of {OWN} in bulk; others follow. Default: {FULL.tasks}.")
@click.option("--rounds", type=click.IntRange(min=1), help=f"Whose medians count. Default: {FULL.rounds}.")
@click.option("--quick", is_flag=True, help="A look with one round and few tasks, of little meaning.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")
@click.option("--profile", is_flag=True, help=f"Show instead where the time goes in {OWN}, in bulk.")
def main(
    only: tuple[str, ...],
    measures: tuple[str, ...],
    tasks: int | None,
    rounds: int | None,
    quick: bool,
    as_json: bool,
    profile: bool,
) -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped on the way out
    sizes = _sizes(quick, tasks, rounds)
    if profile:
        print(profiling.profile(sizes))
        return
    systems, figures = measure(only or (OWN, *PEERS), measures or (COMPARED, *ALONE), sizes)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(_document(systems, figures, sizes))).decode())
    else:
        print(f"{_circumstances(systems)}\n\n{table(figures)}")
    missed = [figure.what for figure in figures if figure.verdict == "MISSED"]
    for what in missed:
        print(f"not what it must be: {what}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def measure(
    names: tuple[str, ...], measures: tuple[str, ...], sizes: Sizes
) -> tuple[dict[str, Measured], list[Figure]]:
    """Return what each system came to, and all figures; those of agentpool alone need it among the names."""
    systems: dict[str, Measured] = {}
    figures: list[Figure] = []
    if COMPARED in measures:
        systems = compare(names, sizes)
        figures += figures_of(systems, sizes)
    if OWN in names:
        figures += [asked.figure(sizes) for name, asked in ALONE.items() if name in measures]
    return systems, figures


def _sizes(quick: bool, tasks: int | None, rounds: int | None) -> Sizes:
    given = {name: value for name, value in {"tasks": tasks, "rounds": rounds}.items() if value is not None}
    return msgspec.structs.replace(QUICK if quick else FULL, **given)


def _circumstances(systems: dict[str, Measured]) -> str:
    """Return when, where and with what was measured, in lines."""
    system = f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f}"
    python = f"Python {platform.python_version()}"
    own = f"{OWN} {__version__}"
    lines = [f"Measured on {datetime.date.today():%Y-%m-%d}: {system}, {python}, {find_binary()}, {own}."]
    peers = [
        f"{measured.title} on " + ", ".join(f"{package} {version}" for package, version in measured.versions.items())
        for name, measured in systems.items()
        if name != OWN and measured.versions
    ]
    return "\n".join([*lines, *([f"Peers: {'; '.join(peers)}."] if peers else [])])


def _document(systems: dict[str, Measured], figures: list[Figure], sizes: Sizes) -> dict[str, object]:
    return {
        "circumstances": _circumstances(systems),
        "sizes": sizes,
        "systems": systems,
        "figures": [{**msgspec.structs.asdict(figure), "verdict": figure.verdict} for figure in figures],
    }


if __name__ == "__main__":
    main()
