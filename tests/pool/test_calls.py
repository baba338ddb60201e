"""What is said of an agent's errors."""

import time

import pytest

from agentpool.pool.calls import Call, Meter, brief


def test_an_error_is_named_without_the_data_that_it_is_about() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"\xff" + b"secret" * 10_000).decode()
    assert brief(caught.value).startswith("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0")
    assert len(brief(caught.value)) < 100
    assert len(brief(ValueError("x" * 10_000))) == 2048


async def test_a_call_that_ends_in_the_step_of_its_deadline_has_ended_well() -> None:
    async def code() -> int:
        time.sleep(0.02)
        return 1

    call = Call(code, label="code()", timeout=0.01, grace=1, meter=Meter())
    ended = await call.ended()
    assert (ended.well, ended.value) == (True, 1)
