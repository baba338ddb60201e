"""Leaves a thread behind when it is imported."""

import threading
from typing import Any

from agentpool.agent import Agent, Context

threading.Thread(target=threading.Event().wait, name="telemetry", daemon=True).start()


class Threaded(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input
