"""A module whose workers die right after the fork."""

import os
from typing import Any

from agentpool import Agent, Context

os.register_at_fork(after_in_child=lambda: os._exit(3))


class Echo(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input
