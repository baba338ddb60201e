"""The README's example and its tour do what they say, on real masters."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.master import clean_environ, running_processes
from support.wait import wait_until_sync

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(kind: str) -> list[str]:
    return re.findall(rf"(?m)^```{kind}\n(.*?)^```$", README, re.DOTALL)


def run(folder: Path, *command: str | Path, **environ: str) -> str:
    """Run a command to its end and return what it printed."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environ = clean_environ(PATH=path, HOME=str(folder), **environ)
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def master(folder: Path, *flags: str | Path) -> Iterator[None]:
    """An agentpool-master in a folder, for the block; what it leaves is a failure."""
    log, data_dir = folder / "master.log", folder / ".agentpool"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BIN / "agentpool-master", "run", "--data-dir", data_dir, *flags],
            cwd=folder,
            env=clean_environ(HOME=str(folder)),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_until_sync(lambda: b"master.ready" in log.read_bytes() or process.poll(), 20, message=log.read_text)
        yield
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
        assert running_processes(str(data_dir)) == []
    finally:
        for left in running_processes(str(folder)):
            left.kill()
        process.kill()
        process.wait()


def test_the_example_runs(tmp_path: Path) -> None:
    for text in blocks("python"):
        (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    (tmp_path / "agentpool.toml").write_text(blocks("toml")[0])
    with master(tmp_path):
        printed = run(tmp_path, sys.executable, "main.py", AGENTPOOL_DATA_DIR=".agentpool")
    assert printed == blocks("text")[0]


def test_the_example_runs_without_redis(tmp_path: Path) -> None:
    for text in blocks("python"):
        (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    (tmp_path / "agentpool.toml").write_text(blocks("toml")[0])
    assert "USE_MULTIPROCESSING=false python main.py" in blocks("sh")[0]
    assert run(tmp_path, sys.executable, "main.py", USE_MULTIPROCESSING="false") == blocks("text")[0]


def test_the_tour_runs(tmp_path: Path) -> None:
    """All its blocks in one shell, as a newcomer would type them, with the demo's pools."""
    demo = ROOT / "scripts" / "demo"
    tour = "set -eu\n" + "".join(blocks("bash")).replace("PATH=.venv/bin:$PATH\n", "")
    with master(tmp_path, "--config", demo / "agentpool.toml", "--app-dir", demo):
        printed = run(tmp_path, "bash", "-c", tour)
    assert "Traceback" not in printed
    assert '"words": 3' in printed
    assert "worker.lost" in printed
    assert "All invariants hold." in printed


def test_make_has_the_commands_it_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"[`$] ?make (\w+)", README):
        assert re.search(rf"(?m)^{target}:", makefile), target
