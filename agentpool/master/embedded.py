"""Looking after the embedded Redis server: started again when it dies."""

import asyncio

import structlog

from agentpool.redis_server import EmbeddedServer

__all__ = ["ServerKeeper"]

log = structlog.get_logger("embedded")

CHECK_INTERVAL = 0.5


class ServerKeeper:
    """Keeps one embedded server running."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    async def check_once(self) -> None:
        """Start the server again if it ended; raises `ServerError` when that fails."""
        if await asyncio.to_thread(self._server.is_alive):
            return
        log.error("redis.ended", pid=self._server.pid)
        await asyncio.to_thread(self._server.start)
        log.warning("redis.restarted", pid=self._server.pid, warnings=self._server.warnings)
