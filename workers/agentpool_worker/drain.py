"""How a worker leaves: nothing new, what runs finishes, agents are handed over, then it retires.

Idle agents move at once, busy ones after their task. At the deadline the tasks that still run are cancelled. Should
Redis be away past all of that, the worker leaves as it is, and its master gives back what it held.
"""

import asyncio
from collections.abc import Callable

import structlog

from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError
from agentpool.hosting import Host
from agentpool.hosting.pinned import Pinned
from agentpool.protocol.keys import split_id
from agentpool_worker.executor import Executor
from agentpool_worker.inbox import Inbox
from agentpool_worker.place import WorkPlace

__all__ = ["Drain"]

log = structlog.get_logger("worker")

RETIRE_RETRY_DELAY = 0.2


class Drain:
    """One worker's way out. `on_retire()` is called before the worker is taken out of Redis."""

    def __init__(
        self,
        place: WorkPlace,
        host: Host,
        executor: Executor,
        inbox: Inbox,
        *,
        on_retire: Callable[[], None],
    ) -> None:
        self._place, self._host, self._agents = place, host, host.agents
        self._executor, self._inbox, self._on_retire = executor, inbox, on_retire
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """Bring the deadline forward: cancel running tasks now."""
        self._hurried.set()

    async def run(self, reason: str, *, known: bool) -> None:
        """Leave; returns when the worker is retired or waiting longer is of no use. `known`: Redis says it drains."""
        settings = self._place.settings
        # Cancelled tasks have their grace, and so have stop() and snapshot() of their agents after them.
        rest = 3 * settings.agent_stop_timeout + settings.command_timeout
        canceller = asyncio.create_task(self._cancel_at_deadline(settings.drain_timeout))
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + settings.drain_timeout + rest):
                await self._leave(reason, known)
        except TimeoutError:
            log.error("worker.drain_failed", held=[pinned.id for pinned in self._agents.all()])
        finally:
            canceller.cancel()

    async def _cancel_at_deadline(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._hurried.wait()
        except TimeoutError:
            log.warning("worker.drain_deadline", running=len(self._executor.running()))
        self._executor.give_back_all()

    async def _leave(self, reason: str, known: bool) -> None:
        began = monotonic()
        self._agents.start_no_more()
        if not known:
            await self._announce(reason)
        await self._executor.settle()
        while True:
            await self._hand_over_all()
            await self._executor.finished()
            await self._agents.gone()
            await self._host.close()
            if await self._retire(reason):
                log.info("worker.drained", seconds=round(monotonic() - began, 3))
                return
            # Something is registered here that is not here: look again.
            self._inbox.resync()
            await asyncio.sleep(RETIRE_RETRY_DELAY)

    async def _announce(self, reason: str) -> None:
        """Leave the index of workers with room, before anything is given back: it would be placed here again."""
        place = self._place
        try:
            await place.insist("drain", lambda: place.store.workers.drain(place.pool, place.worker_id, reason=reason))
        except AgentPoolError as error:
            log.error("worker.drain_refused", error=str(error))

    async def _hand_over_all(self) -> None:
        """Give back every agent: those held with what they want to find again, those not started as they are."""
        held = (self._hand_over(pinned) for pinned in self._agents.all())
        strays = (self._release(stray.agent_id, stray.incarnation, "") for stray in self._agents.take_strays())
        results = await asyncio.gather(*held, *strays, return_exceptions=True)
        for result in results:
            if isinstance(result, AgentPoolError):
                log.error("agent.release_failed", error=str(result))
            elif isinstance(result, BaseException):
                raise result

    async def _hand_over(self, pinned: Pinned) -> None:
        state = await pinned.hand_over()
        await self._release(pinned.id, pinned.incarnation, state)

    async def _release(self, agent_id: str, incarnation: int, state: str) -> None:
        place, name = self._place, split_id(agent_id)[1]
        release = place.store.agents.release
        word = await place.insist("release", lambda: release(place.pool, place.worker_id, name, incarnation, state))
        log.debug("agent.released", agent_id=agent_id, to=word)

    async def _retire(self, reason: str) -> bool:
        place = self._place
        self._on_retire()
        return await place.insist(
            "retire", lambda: place.store.workers.retire(place.pool, place.worker_id, reason=reason)
        )
