"""Is a worker of this host frozen, or does an agent block its loop? Two verdicts with two deadlines.

Beats come from a thread, so an agent that blocks the loop is seen in the lag that the beats report. But a thread can
be starved, too: code that holds the interpreter lock stops beats as well. So a silent process that is not stopped and
burns CPU is blocked, not frozen.
"""

from enum import StrEnum

import msgspec

__all__ = ["Deadlines", "Sign", "Verdict", "judge"]


class Verdict(StrEnum):
    """What to think of a worker."""

    WELL = "well"
    FROZEN = "frozen"
    BLOCKED = "blocked"


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Times in ms."""

    heartbeat_timeout_ms: int
    block_timeout_ms: int


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of a process: its beats, the lag they report, and what the kernel says."""

    silence_ms: int
    loop_lag_ms: int
    stopped: bool
    """The kernel shows it as stopped or traced."""
    cpu_busy: bool
    """It used most of a core since it was last looked at."""


def judge(sign: Sign, deadlines: Deadlines) -> Verdict:
    """Return the verdict; a well worker may still be lagging, which is reported elsewhere."""
    starved = sign.cpu_busy and not sign.stopped
    if sign.silence_ms >= deadlines.heartbeat_timeout_ms:
        if not starved:
            return Verdict.FROZEN
        return Verdict.BLOCKED if sign.silence_ms >= deadlines.block_timeout_ms else Verdict.WELL
    return Verdict.BLOCKED if sign.loop_lag_ms >= deadlines.block_timeout_ms else Verdict.WELL
