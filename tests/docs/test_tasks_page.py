"""The example of docs/tasks.md does what the page says."""

import re
import sys
from pathlib import Path

import pytest
from docs.test_readme import master, run

from agentpool.config import load
from agentpool.config.settings import PoolSettings, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"(?m)^```{kind}\n(.*?)^```$", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for text in blocks("python"):
        (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    (tmp_path / "agentpool.toml").write_text(blocks("toml")[0])
    return tmp_path


def test_the_example_runs(folder: Path) -> None:
    with master(folder):
        printed = run(folder, sys.executable, "fetch.py", AGENTPOOL_DATA_DIR=".agentpool")
    assert printed == blocks("text")[0]


@pytest.mark.parametrize("text", blocks("toml"))
def test_its_settings_load(text: str, tmp_path: Path) -> None:
    file = tmp_path / "agentpool.toml"
    file.write_text(text)
    assert load(config_path=file, environ={"HOME": str(tmp_path)}).warnings == ()


def test_its_settings_and_defaults_are_those_of_the_code() -> None:
    named = set(re.findall(r"`(\w+)(?: = [\w.]+)?`", PAGE))
    known = {*PoolSettings.__struct_fields__, *Settings.__struct_fields__}
    assert {"result_ttl", "key_ttl", "max_dead", "batch_max_wait", "retry_attempts", "task_timeout"} <= named & known
    shown = dict(re.findall(r"`(tenant_\w+) = (\d+)`", PAGE))
    assert shown == {name: str(getattr(PoolSettings(), name)) for name in shown}
    assert len(shown) == 5
