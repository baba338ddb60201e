"""What running tasks report, on its way to those who follow them: in order, and no more is kept than a bound."""

import asyncio
from typing import Any

import structlog

from agentpool.errors import RedisUnavailable
from agentpool.protocol.codec import encode_json
from agentpool_worker.place import WorkPlace

__all__ = ["Reports"]

log = structlog.get_logger("worker")

REPORTS_PER_CALL = 50
REPORTS_MAX = 1000


class Reports:
    """Sends while there is something to send."""

    def __init__(self, place: WorkPlace) -> None:
        self._place = place
        self._reports: list[tuple[str, bytes]] = []
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_sending(self) -> bool:
        """Tell whether there is something that is not sent yet."""
        return self._sending is not None

    def add(self, task_id: str, progress: Any) -> None:
        """Pass on what a task reports; raises `TypeError` for what has no JSON form."""
        try:
            report = encode_json(progress)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"emit(): what is reported cannot be written as JSON: {error}") from None
        self._reports.append((task_id, report))
        del self._reports[:-REPORTS_MAX]
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="reports")

    async def _send(self) -> None:
        """Send what tasks report, in their order; what nobody takes for long is given up."""
        try:
            while self._reports:
                reports = self._reports[:REPORTS_PER_CALL]
                try:
                    await self._place.store.tasks.report(self._place.pool, self._place.worker_id, reports)
                except RedisUnavailable as error:
                    log.warning("redis.unavailable", doing="report", error=str(error))
                del self._reports[: len(reports)]
        finally:
            self._sending = None
