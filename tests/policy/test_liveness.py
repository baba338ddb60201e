"""Frozen, blocked, or well."""

import pytest

from agentpool.policy.liveness import Deadlines, Look, Sign, Verdict, judge, proves_silence

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


@pytest.mark.parametrize(
    ("at", "server_ms", "proves"),
    [
        (11.0, 51_000, True),
        (12.0, 52_000, True),
        (12.1, 52_100, False),  # nobody looked
        (11.0, 53_500, False),  # the server's clock was set forward
        (11.0, 3_651_000, False),
        (11.0, 48_000, False),  # or back
        (11.0, 52_500, True),
    ],
)
def test_silence_proves_something_while_looks_and_clocks_go_on(at: float, server_ms: int, proves: bool) -> None:
    assert proves_silence(Look(10.0, 50_000), Look(at, server_ms), 2.0) is proves
