"""Deaths read as people say them."""

import pytest

from agentpool.protocol.deaths import (
    Death,
    Exited,
    Killed,
    Silent,
    Vanished,
    by_itself,
    from_wait_status,
    was_stopped,
)
from agentpool.protocol.zygote import Exit


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (Exited(0), "exited with 0 (clean)"),
        (Exited(12), "exited with 12 (deaf)"),
        (Exited(3), "exited with 3"),
        (Killed(9), "killed by SIGKILL"),
        (Killed(9, "frozen"), "killed by SIGKILL: frozen"),
        (Killed(200), "killed by signal 200"),
        (Silent(1.5), "no heartbeat for 1.5 s"),
        (Vanished(), "gone, status unknown"),
        (Vanished("frozen"), "gone: frozen"),
    ],
)
def test_a_death_tells_how(death: Death, text: str) -> None:
    assert str(death) == text


def test_wait_statuses_are_read() -> None:
    assert from_wait_status(3 << 8) == Exited(3)
    assert from_wait_status(9, "frozen") == Killed(9, "frozen")


@pytest.mark.parametrize(
    ("death", "of_itself", "stopped"),
    [
        (Exited(3), True, False),
        (Killed(11), True, False),
        (Killed(9), False, False),
        (Killed(9, "blocked"), False, True),
        (Exited(Exit.BLOCKED), False, True),
        (Silent(1.5), False, False),
        (Vanished("found dead"), False, False),
    ],
)
def test_a_death_is_its_own_deed_or_another_s(death: Death, of_itself: bool, stopped: bool) -> None:
    assert (by_itself(death), was_stopped(death)) == (of_itself, stopped)
