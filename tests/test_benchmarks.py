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
import bench_tasks
from bench.figures import Figure, median, quantile, table
from bench.processes import children_of
from bench.running import SCRIPTS, BenchError, RunningMaster
from bench.sizes import TINY
from bench.tasks import environments
from bench.tasks.alone import ALONE, Asked
from bench.tasks.comparing import OWN, Measured, compare
from bench.tasks.sizes import TINY as TINY_TASKS
from bench.tasks.standing import figures_of


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


# -- the task path --------------------------------------------------------------------------------------------------


def test_bulk_single_and_idle_are_measured_of_agentpool_and_no_process_is_left() -> None:
    before = children_of(os.getpid())
    systems, figures = bench_tasks.measure((OWN,), (bench_tasks.COMPARED,), TINY_TASKS)
    assert systems[OWN].problem == ""
    assert [(len(figure.values), bool(figure.verdict)) for figure in figures] == [(1, True), (1, True), (2, True)]
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize("name", ALONE)
def test_what_agentpool_alone_is_asked_is_measured_and_no_process_is_left(name: str) -> None:
    before = children_of(os.getpid())
    figure = ALONE[name].figure(TINY_TASKS)
    assert figure.values, figure.floor
    assert all(value > 0 for value in figure.values)
    assert len(figure.values) == len(figure.must) == len(figure.aim)
    assert children_of(os.getpid()) == before


def test_what_cannot_be_measured_is_missed_and_says_why() -> None:
    def fail(_: object) -> tuple[tuple[float, ...], str]:
        raise BenchError("no such luck\nand more")

    figure = Asked(fail, "{sizes.kills} kills", "ms", must=(1,), aim=(1,)).figure(TINY_TASKS)
    assert (figure.what, figure.verdict, figure.passed) == ("1 kills", "MISSED", False)
    assert figure.row()[1:] == ("—", "< 1 ms", "< 1 ms", "could not be measured: no such luck", "MISSED")


def test_rates_must_reach_their_bounds() -> None:
    def verdict(value: float) -> str:
        return Figure(what="x", unit="/s", values=(value,), must=(5000,), aim=(12_000,), at_least=True).verdict

    assert [verdict(12_000), verdict(11_999), verdict(5000), verdict(4999)] == ["aim", "must", "must", "MISSED"]


def measured(title: str, bulk: float, single: float, p50: float, p99: float) -> Measured:
    return Measured(title, "its settings", {title: "1.0"}, [bulk, bulk], [single], [p50], [p99])


def test_agentpool_is_compared_with_the_best_of_each_figure_and_every_peer_has_its_lines() -> None:
    systems = {
        OWN: measured(OWN, 30_000, 4000, 0.9, 4.0),
        "saq": measured("SAQ", 2000, 3000, 2.0, 3.0),
        "rq": measured("RQ", 1000, 1000, 1.0, 9.0),
        "ray": Measured("Ray", "fast ones", problem="not installed: no wheel"),
    }
    figures = {figure.what.partition(":")[0]: figure for figure in figures_of(systems, TINY_TASKS)}
    rows = {what: (figure.values, figure.verdict, figure.floor) for what, figure in figures.items()}
    assert rows["bulk, first handed in → last result"] == ((30_000,), "aim", "of 2: 30,000 / 30,000 /s")
    assert rows["bulk, times the fastest peer"] == ((15.0,), "aim", "SAQ 2,000 /s")
    assert rows["single, times the fastest peer"][:2] == ((4000 / 3000,), "MISSED")
    assert rows["idle, times the best peer's p50 / p99"] == ((0.9, 4 / 3), "MISSED", "RQ / SAQ 1.00 / 3.00 ms")
    assert [what for what in rows if what.startswith("· bulk")] == ["· bulk, SAQ 1.0", "· bulk, RQ 1.0", "· bulk, Ray"]
    assert rows["· bulk, SAQ 1.0"] == ((2000,), "", "its settings")
    assert rows["· idle, Ray"] == ((), "", "not installed: no wheel")


def test_a_peer_that_cannot_be_installed_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def install(command: list[str]) -> None:
        raise subprocess.CalledProcessError(
            1, command, stderr="looking\nERROR: no distribution found\nwarning: old pip"
        )

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "_run", install)
    assert compare(["rq"], TINY_TASKS)["rq"].problem == "not installed: no distribution found"


def test_every_peer_has_its_file() -> None:
    files = {path.stem for path in (SCRIPTS / "bench" / "tasks" / "peers").glob("*.py")} - {"__init__"}
    assert files == set(environments.PEERS)
