"""Deaths read as people say them."""

import pytest

from agentpool.protocol.deaths import Death, Exited, Killed, Silent, Vanished, from_wait_status


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
