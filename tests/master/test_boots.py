"""Failed boots in a row delay the next start, and then stop it."""

from agentpool.master.boots import Boots


def test_failures_back_off_then_give_up_until_reset() -> None:
    boots = Boots(failures_max=3, backoff=10.0, backoff_max=60.0)
    assert boots.delay() == 0
    boots.failed("killed by SIGSEGV")
    first = boots.delay()
    assert 4 < first <= 10
    boots.failed("killed by SIGSEGV")
    assert boots.delay() > first
    assert not boots.given_up
    boots.failed("killed by SIGSEGV")
    assert "3 workers in a row failed to start; the last: killed by SIGSEGV" in boots.given_up
    boots.reset()
    assert (boots.given_up, boots.delay()) == ("", 0)


def test_a_boot_without_redis_delays_but_does_not_count() -> None:
    boots = Boots(failures_max=2, backoff=10.0, backoff_max=60.0)
    for _ in range(5):
        boots.failed("exited with 10", counts=False)
    assert not boots.given_up
    assert boots.delay() > 0
