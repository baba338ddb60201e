"""What is said of an agent's errors."""

import pytest

from agentpool.pool.calls import brief


def test_an_error_is_named_without_the_data_that_it_is_about() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"\xff" + b"secret" * 10_000).decode()
    assert brief(caught.value).startswith("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0")
    assert len(brief(caught.value)) < 100
    assert len(brief(ValueError("x" * 10_000))) == 2048
