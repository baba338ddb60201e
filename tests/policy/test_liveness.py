"""Frozen, blocked, or well."""

import pytest

from agentpool.policy.liveness import Deadlines, Sign, Verdict, judge

DEADLINES = Deadlines(heartbeat_timeout_ms=10_000, block_timeout_ms=30_000)


@pytest.mark.parametrize(
    ("silence", "lag", "stopped", "busy", "verdict"),
    [
        (500, 0, False, False, Verdict.WELL),
        (9_999, 0, True, False, Verdict.WELL),
        (10_000, 0, True, False, Verdict.FROZEN),
        (10_000, 0, False, False, Verdict.FROZEN),
        (10_000, 0, False, True, Verdict.WELL),
        (30_000, 0, False, True, Verdict.BLOCKED),
        (30_000, 0, True, True, Verdict.FROZEN),
        (500, 29_999, False, True, Verdict.WELL),
        (500, 30_000, False, False, Verdict.BLOCKED),
    ],
)
def test_verdicts(silence: int, lag: int, stopped: bool, busy: bool, verdict: Verdict) -> None:
    sign = Sign(silence_ms=silence, loop_lag_ms=lag, stopped=stopped, cpu_busy=busy)
    assert judge(sign, DEADLINES) is verdict
