"""Where the time goes in bulk: the client under cProfile, then a worker under py-spy where that is installed."""

import cProfile
import io
import os
import pstats
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.tasks.own import Own, own_master
from bench.tasks.sizes import Sizes

__all__ = ["profile"]

LINES = 30
SAMPLES_PER_S = 200


def profile(sizes: Sizes) -> str:
    """Return the functions in which most time is spent, of the client and of one worker."""
    plan = sizes.plan(bulk_only=True)
    text = io.StringIO()
    with own_master() as master:
        profiled = _Profiled(master.url)
        rate = profiled.measure(plan)["bulk"]
        pstats.Stats(profiled.profiler, stream=text).sort_stats("tottime").print_stats(LINES)
        pid = next(iter(master.worker_pids().values()))[0]
        spied = _spied(pid, lambda: Own(master.url).measure(plan))
    return (
        f"client, under cProfile, {rate:,.0f} /s:\n{text.getvalue()}\n"
        f"a worker, under py-spy, share of the samples in functions themselves:\n{spied}"
    )


class _Profiled(Own):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.profiler = cProfile.Profile()

    async def bulk(self, inputs: Sequence[str]) -> list[int]:
        with self.profiler:
            return await super().bulk(inputs)


def _spied(pid: int, work: Callable[[], object]) -> str:
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        return "py-spy is not installed"
    with tempfile.TemporaryDirectory(prefix="agentpool-bench-") as folder:
        raw = Path(folder) / "stacks"
        command = [program, "record", "--nonblocking", "--format", "raw", "--rate", str(SAMPLES_PER_S)]
        spy = subprocess.Popen(
            [*command, "--output", str(raw), "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            work()
        finally:
            spy.send_signal(signal.SIGINT)
            _, complaints = spy.communicate(timeout=30)
        return _summed(raw.read_text()) if raw.exists() else f"py-spy wrote nothing: {complaints.strip()[-300:]}"


def _summed(stacks: str) -> str:
    """Return the innermost functions of collapsed stacks with their share of the samples."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[stack.rpartition(";")[2]] += int(count)
    total = max(1, counts.total())
    return "\n".join(f"{100 * count / total:5.1f} %  {name}" for name, count in counts.most_common(LINES))
