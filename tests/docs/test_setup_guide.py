"""The guide's blocks do what they say: bash and python are run in order against a real master, toml is loaded."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.master import clean_environ, running_processes

from agentpool.config import MINIMAL_FILE, load

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "MULTIPROCESSING_SETUP.md").read_text()
BLOCKS = re.findall(r"(?m)^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL)

PROLOGUE = """
set -eu
line=start
# Whatever happens, the master that the guide starts does not outlive it.
finish() {
    status=$?
    [ "$status" = 0 ] || echo "the guide failed in: $line" >&2
    for job in $(jobs -p); do kill -TERM "$job" 2>/dev/null && kill -TERM "$job" 2>/dev/null; done
    wait
    exit "$status"
}
trap finish EXIT
"""


def script() -> str:
    """All blocks that can be run, as one script; blocks share their shell as an operator's would."""
    parts = [PROLOGUE]
    for number, (kind, text) in enumerate(BLOCKS):
        if kind not in ("bash", "python"):
            continue
        parts.append(f"line='block {number}: {text.splitlines()[0][:60].replace(chr(39), '')}'; echo \"== $line\"\n")
        if kind == "python":
            text = f"python3 - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n"
        # `! command` does not end a script under `set -e` even if the command works: say so.
        parts.append(re.sub(r"(?m)^! (.*)$", r"if \1; then echo 'this should have failed' >&2; exit 1; fi", text))
    return "".join(parts)


def test_every_block_has_a_known_kind() -> None:
    assert {kind for kind, _ in BLOCKS} <= {"bash", "console", "python", "toml", "text"}
    assert [kind for kind, _ in BLOCKS].count("bash") >= 12


def test_what_cannot_be_run_here_is_no_bash_block() -> None:
    forbidden = re.compile(r"systemctl|apt|docker|supervisorctl|redis-cli|sudo")
    assert [text for kind, text in BLOCKS if kind == "bash" and forbidden.search(text)] == []


@pytest.mark.timeout(480)
def test_the_guide_runs_from_top_to_bottom(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        done = subprocess.run(
            ["bash", "-c", script()],
            cwd=tmp_path,
            env=clean_environ(PATH=path, HOME=str(tmp_path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
        )
        log = tmp_path / "master.log"
        told = done.stdout + done.stderr + (log.read_text()[-3000:] if log.exists() else "")
        assert done.returncode == 0, told
        assert "Traceback" not in done.stderr, told  # a dead letter shows its own on standard output
        assert running_processes(str(tmp_path / "data")) == []
    finally:
        for process in running_processes(str(tmp_path / "data")):
            process.kill()


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "toml"])
def test_toml_blocks_load(text: str, tmp_path: Path) -> None:
    """A block that shows one table is completed with a minimal pool."""
    file = tmp_path / "agentpool.toml"
    file.write_text(text if "pools" in tomllib.loads(text) else text + MINIMAL_FILE)
    assert load(config_path=file, environ={"HOME": str(tmp_path)}).warnings == ()


def test_the_table_of_contents_is_complete() -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", GUIDE)
    expected = []
    for number, title in re.findall(r"(?m)^## (\d+\.) (.*)$", text):
        anchor = re.sub(r"[^a-z0-9 -]", "", f"{number} {title}".lower()).replace(" ", "-")
        expected.append((number, title, anchor))
    assert re.findall(r"(?m)^(\d+\.) \[(.*)\]\(#(.*)\)$", text) == expected
