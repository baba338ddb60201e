"""Measure the control plane against its floors: `make bench-control`.

Everything that is measured is started here and stopped again: masters with embedded servers, in folders of their own.
Exit status 1 when a figure is not what it must be.
"""

import datetime
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from bench import idling, placing, recovering, spawning, starting
from bench.figures import Figure, table
from bench.sizes import FULL, QUICK, Sizes

from agentpool.redis_server import find_binary

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- bench-control: begin -->", "<!-- bench-control: end -->"
MEASURES: dict[str, Callable[[Sizes], list[Figure]]] = {
    "start": starting.measure,
    "idle": idling.measure,
    "spawn": spawning.measure,
    "recover": recovering.measure,
    "place": placing.measure,
}


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(MEASURES)), multiple=True, help="Measure this alone; may be repeated.")
@click.option("--runs", type=click.IntRange(min=1), help="How often each measurement is repeated. Default: 5.")
@click.option("--quick", is_flag=True, help="A look with small numbers, of little meaning.")
@click.option("--write", is_flag=True, help="Write the table into docs/performance.md.")
def main(only: tuple[str, ...], runs: int | None, quick: bool, write: bool) -> None:
    """Measure, print, write."""
    if write and (only or quick):
        raise click.UsageError("--write is for a full run: without --only and --quick.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped on the way out
    figures = _measure(only or tuple(MEASURES), _sizes(quick, runs))
    print(table(figures))
    if write:
        PAGE.write_text(replaced(PAGE.read_text(), f"{_circumstances()}\n\n{table(figures)}"))
    missed = [figure.what for figure in figures if figure.verdict == "MISSED"]
    for what in missed:
        print(f"not what it must be: {what}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def _sizes(quick: bool, runs: int | None) -> Sizes:
    sizes = QUICK if quick else FULL
    return msgspec.structs.replace(sizes, runs=runs) if runs else sizes


def _measure(names: tuple[str, ...], sizes: Sizes) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        began = time.monotonic()
        figures += MEASURES[name](sizes)
        print(f"{name}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return figures


def replaced(page: str, text: str) -> str:
    """Return the page with the text between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _circumstances() -> str:
    system = f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} cores"
    python = f"Python {platform.python_version()}"
    return f"Measured on {datetime.date.today():%Y-%m-%d}: {system}, {python}, {find_binary()}."


if __name__ == "__main__":
    main()
