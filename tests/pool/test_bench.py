"""The benchmark runs: with numbers so small that they mean nothing."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_pool.py"


def test_the_benchmark_yields_its_table() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "acquire() + release()" in done.stdout
