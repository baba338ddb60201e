"""A short run of the whole harness: a few faults, real processes, and nothing wrong afterwards."""

from pathlib import Path

import pytest
from chaos.report import render
from chaos.run import Run
from chaos.schedule import Fault, Kind, Timing

SECONDS = (
    (Kind.WORKER_KILL, 0.0, 0.0),
    (Kind.REPLIES_DROPPED, 0.5, 1.5),
    (Kind.LEADER_KILL, 1.0, 0.5),
    (Kind.FUNCTION_FLUSH, 3.0, 0.0),
    (Kind.SERVER_KILL, 3.5, 0.3),
    (Kind.WORKER_KILL, 5.0, 0.0),
)


@pytest.mark.timeout(180)
async def test_a_few_faults_break_nothing(tmp_path: Path) -> None:
    faults = [Fault(n, kind, at, length, 0.3, 0.5) for n, (kind, at, length) in enumerate(SECONDS)]
    run = Run(tmp_path / "run", 1, faults, Timing(), rate=10)
    summary = await run.carry_out()
    report = render(summary)
    assert run.violations == [], report
    assert len(summary.operations) > 30, report
    assert sum(done.skipped == "" for done in summary.faults) >= 4, report
    assert "| worker killed | 2 |" in report
