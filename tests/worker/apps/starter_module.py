"""Starts a program when it is imported, and does not wait for it: done at once."""

import subprocess
from typing import Any

from agentpool.agent import Agent, Context

subprocess.Popen(["true"])


class Starter(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input
