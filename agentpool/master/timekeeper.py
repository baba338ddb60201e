"""The leader's timers: delayed tasks and retries begin, tasks expire, tenants go on."""

from agentpool.master.scope import PoolScope

__all__ = ["INTERVAL", "Timekeeper"]

INTERVAL = 1.0
"""Seconds between turns that nothing woke and no timer asked for."""


class Timekeeper:
    """Fires what is due in one pool while this master leads it; workers do it when a leader is late."""

    def __init__(self, scope: PoolScope) -> None:
        self._scope = scope

    async def fire_once(self) -> float | None:
        """Do what is due; returns when it wants to run again, in s."""
        if not self._scope.token:
            return None
        next_due_ms = await self._scope.store.tasks.fire_timers(self._scope.pool)
        return INTERVAL if next_due_ms < 0 else min(INTERVAL, next_due_ms / 1000 + 0.001)
