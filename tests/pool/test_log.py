"""What the pool logs is seen as docs/pool.md says."""

import json
import re
import subprocess
import sys
from pathlib import Path

GUIDE = (Path(__file__).parents[2] / "docs" / "pool.md").read_text()
FAILING = """
import asyncio
from agentpool import Agent
from agentpool.pool import AgentPool, StartFailed

class Failing(Agent):
    async def start(self, ctx):
        raise OSError("no key")

    async def run(self, ctx, input): ...

async def main():
    async with AgentPool(Failing) as pool:
        try:
            await pool.acquire()
        except StartFailed:
            pass

asyncio.run(main())
"""


def logged(setup: str) -> str:
    """What a program with this set-up of logging writes when an agent of its pool does not start."""
    command = [sys.executable, "-c", setup + FAILING]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_a_formatter_of_ones_own_shows_the_facts() -> None:
    (setup,) = (code for code in re.findall(r"(?s)```python\n(.*?)```", GUIDE) if "logging" in code)
    lines = logged(setup).splitlines()
    assert lines[0].startswith("WARNING agentpool.pool.circuit: pool.start_failed {")
    for fact in ("'agent_id': 'local/", "'error': 'start() raised OSError: no key'", "'traceback': 'Traceback"):
        assert fact in lines[0]


def test_configure_shows_the_facts() -> None:
    line = json.loads(logged("import agentpool.logs; agentpool.logs.configure()").splitlines()[0])
    assert line["event"] == "pool.start_failed"
    assert line["error"] == "start() raised OSError: no key"
    assert "in start" in line["traceback"]
