"""The benchmarks run: with numbers so small that they mean nothing, on real masters that are gone afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The benchmarks are programs, not part of the packages.
if (scripts := str(Path(__file__).resolve().parent.parent / "scripts")) not in sys.path:
    sys.path.append(scripts)

import bench_control
from bench.figures import Figure, median, quantile, table
from bench.processes import children_of
from bench.running import SCRIPTS, BenchError, RunningMaster
from bench.sizes import TINY


@pytest.mark.parametrize("name", bench_control.MEASURES)
def test_a_measurement_yields_figures_and_leaves_no_process(name: str) -> None:
    before = children_of(os.getpid())
    figures = bench_control.MEASURES[name](TINY)
    assert figures
    assert all(value >= 0 for figure in figures for value in figure.values)
    assert any(figure.verdict for figure in figures)
    assert children_of(os.getpid()) == before


def test_a_master_that_cannot_start_is_told_with_its_log_and_cleared_away() -> None:
    before = children_of(os.getpid())
    with pytest.raises(BenchError, match="no_such_module"), RunningMaster(agents=["no_such_module:Agent"]):
        pass
    assert children_of(os.getpid()) == before


def test_verdicts_follow_the_bounds() -> None:
    def verdict(*values: float) -> str:
        return Figure(what="x", unit="ms", values=values, must=(5, 15), aim=(2, 6)).verdict

    assert [verdict(1, 5), verdict(1, 7), verdict(5, 7), verdict(1, 15)] == ["aim", "must", "MISSED", "MISSED"]
    assert Figure(what="x", unit="ms", values=(1,)).verdict == ""


def test_the_table_is_markdown_with_a_line_for_each_figure() -> None:
    figure = Figure(what="x", unit="ms", values=(1.234, 56.78), must=(5, 100), aim=(2, 50), floor="fork 1 ms")
    head, rule, line = table([figure]).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "x",
        "1.23 / 56.8 ms",
        "< 5 / 100 ms",
        "< 2 / 50 ms",
        "fork 1 ms",
        "must",
    ]
    assert len({len(head), len(rule), len(line)}) == 1


def test_quantiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(300, 0, -1)]
    assert (quantile(values, 0.99), quantile([7.0], 0.99), median([1.0, 2.0, 4.0])) == (297.0, 7.0, 2.0)


def test_the_page_has_the_marks_between_which_the_table_is_written() -> None:
    page = bench_control.PAGE.read_text()
    written = bench_control.replaced(page, "the table")
    assert f"{bench_control.BEGIN}\nthe table\n{bench_control.END}" in written
    assert bench_control.replaced(written, "the table") == written


def test_writing_is_only_for_full_runs() -> None:
    command = [sys.executable, str(SCRIPTS / "bench_control.py"), "--quick", "--write"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "full run" in done.stderr) == (2, True)
