"""The examples of the page on testing are tests that pass, with the plugin as it is installed."""

import re
import subprocess
import sys
from pathlib import Path

from agentpool import testing

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def test_the_examples_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "test_reviewer.py").write_text("\n\n".join(blocks))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 passed" in ran.stdout


def test_what_the_page_names_is_there() -> None:
    page = PAGE.read_text()
    for name in ("kill_worker", "freeze_worker", "thaw_worker", "live_pool", "local_pool", "throw_away_server"):
        assert f"{name}(" in page
        assert name in testing.__all__
    for name in re.findall(r"live\.(\w+)\(", page):
        assert hasattr(testing.LiveMaster, name), name
