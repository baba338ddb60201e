"""A module that leaves a thread behind when it is imported."""

import threading
import time
from typing import Any

from agentpool import Agent, Context

threading.Thread(target=time.sleep, args=(3600,), name="left-behind", daemon=True).start()


class Echo(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input
