"""Log lines: JSON when not on a terminal, with the fields that stand on every line."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from agentpool import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was for the tests that follow."""
    before = structlog.get_config()
    yield
    structlog.contextvars.clear_contextvars()
    structlog.configure(**before)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    printed = capsys.readouterr()
    assert printed.out == "", "standard output is for programs"
    return [json.loads(line) for line in printed.err.splitlines()]


def test_lines_are_json_with_name_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(pool="p")
    structlog.get_logger().info("worker.ready", process_id="w1")
    (line,) = lines(capsys)
    assert line["event"] == "worker.ready"
    assert (line["level"], line["pool"], line["process_id"]) == ("info", "p", "w1")
    assert str(line["timestamp"]).endswith("Z")


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1), ("ERROR", 1), ("Info", 3)]
)
def test_level_hides_what_is_below(capsys: pytest.CaptureFixture[str], level: str, shown: int) -> None:
    logs.configure(level)
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("x")
    assert len(lines(capsys)) == shown


def test_configuring_again_replaces_the_bound_fields(capsys: pytest.CaptureFixture[str]) -> None:
    early = structlog.get_logger("early")
    logs.configure(pool="p", process_id="w1")
    logs.configure(pool="q")
    early.info("x")
    (line,) = lines(capsys)
    assert line["pool"] == "q"
    assert "process_id" not in line


def test_exceptions_are_shown_with_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("loop.failed")
    (line,) = lines(capsys)
    assert "ValueError: boom" in str(line["exception"])
    assert "Traceback" in str(line["exception"])


def test_what_has_no_json_form_is_shown_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().info("x", a=object, b=ValueError("y"), c={1, 2}, d="ü\n😀", e=2**70)
    (line,) = lines(capsys)
    assert line["a"] == "<class 'object'>"
    assert line["b"] == "ValueError('y')"
    assert line["d"] == "ü\n😀"


def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().info("x", text="a\nb\r\nc\u2028d")
    assert capsys.readouterr().err.count("\n") == 1


def test_console_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(format="console", pool="p")
    structlog.get_logger().info("worker.ready", process_id="w1")
    text = capsys.readouterr().err
    assert "worker.ready" in text
    assert not text.startswith("{")


@pytest.mark.parametrize(("terminal", "readable"), [(True, True), (False, False)])
def test_auto_looks_at_the_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool, readable: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure()
    structlog.get_logger().info("x")
    assert stream.getvalue().startswith("{") is not readable


def test_unknown_level_is_refused() -> None:
    with pytest.raises(KeyError):
        logs.configure("loud")
