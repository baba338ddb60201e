"""Leading a pool: one master does, by a lease with a fence; the others stand by.

Nothing here is trusted by the scripts: each compares the token with the lock itself. What `token` says is only good
for not trying in vain.
"""

from collections.abc import Awaitable, Callable

import structlog

from agentpool.master.scope import PoolScope
from agentpool.protocol.events import EventName
from agentpool.store.locks import Lead

__all__ = ["Leadership"]

log = structlog.get_logger("leadership")

GAP_MS = 2000
AFTER_LEASE_MS = 10
"""A follower tries that long after the end of the leader's lease, if it is not renewed meanwhile."""


class Leadership:
    """One master's turn at one pool. `on_election` is awaited before the first turn as leader counts, `on_restart` when
    the server has started anew, and may lack its latest writes.
    """

    def __init__(
        self,
        scope: PoolScope,
        on_election: Callable[[str], Awaitable[None]],
        on_restart: Callable[[str], Awaitable[None]],
    ) -> None:
        self._scope, self._on_election, self._on_restart = scope, on_election, on_restart
        self._run = ""
        self._is_asking = False
        """A turn has begun and not ended: the lock may be this master's unbeknown to it."""

    async def lead_once(self) -> float | None:
        """Lead the pool if nobody else does, or go on leading it; returns when a follower wants to try again, in s."""
        scope = self._scope
        self._is_asking = True
        lead = await self._ask()
        if self._run and lead.run != self._run:
            log.warning(EventName.SERVER_RESTARTED, pool=scope.pool, master=scope.master)
            await self._on_restart(lead.token)
        self._run = lead.run
        if lead.token and lead.token != scope.token:
            log.info(EventName.LEADER_ELECTED, pool=scope.pool, master=scope.master, token=lead.token)
            await self._on_election(lead.token)
        elif scope.token and not lead.token:
            log.warning(EventName.LEADER_LOST, pool=scope.pool, master=scope.master, leader=lead.leader)
        scope.token = lead.token
        self._is_asking = False
        return None if lead.token else (lead.lease_ms + AFTER_LEASE_MS) / 1000

    async def resign(self) -> None:
        """Hand over at once, also what a turn took that was broken off; may be called twice."""
        token, self._scope.token = self._scope.token, ""
        if self._is_asking:
            token = (await self._ask()).token
            self._is_asking = False
        if token:
            await self._scope.store.locks.release(self._scope.pool, "leader", token)

    async def _ask(self) -> Lead:
        scope = self._scope
        return await scope.store.locks.lead(
            scope.pool,
            scope.master,
            lease_ms=int(scope.root.leader_lease * 1000),
            gap_ms=GAP_MS,
            hold_ms=int(scope.settings.heartbeat_timeout * 1000),
        )
