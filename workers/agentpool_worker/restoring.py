"""After the server has started anew, maybe without its latest writes, this worker tells it again what it has.

First that it lives, with its agents and tasks, and with what it handed in of late, which is handed in once more. Then
what it should have by what the server still knows, and has not: agents begin anew elsewhere or here, with incarnations
above all that were ever given; what was ended meanwhile is ended again; tasks go back.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import structlog
from msgspec.structs import replace

from agentpool.errors import UnknownAgent
from agentpool.hosting import Host
from agentpool.hosting.pinned import Phase, Pinned
from agentpool.protocol.records import DesiredAgent, WorkerView
from agentpool.protocol.states import AgentStatus
from agentpool_worker.executor import Executor
from agentpool_worker.place import WorkPlace

__all__ = ["Restoring"]

log = structlog.get_logger("worker")

ENDS_KEPT = 1000
LOST_WHY = "it was ended before the server lost that"


class Restoring:
    """`identity` are the fields of the process hash; `leaves()` tells whether this worker is on its way out."""

    def __init__(
        self,
        place: WorkPlace,
        host: Host,
        executor: Executor,
        *,
        identity: Mapping[str, object],
        leaves: Callable[[], bool],
    ) -> None:
        self._place, self._agents, self._executor = place, host.agents, executor
        self._identity, self._leaves = identity, leaves
        self._run = ""
        """The run of the server in which this worker was last known to it."""
        self._stopped: set[tuple[str, int]] = set()
        self._ended: deque[tuple[str, int]] = deque(maxlen=ENDS_KEPT)
        """Agents of late that this worker was told to end: ids and incarnations."""

    def note_stopped(self, agents: Iterable[Pinned]) -> None:
        """These stop because the worker is cut off; they may start here again as they are."""
        self._stopped.update((pinned.id, pinned.incarnation) for pinned in agents)

    def note_end(self, agent_id: str) -> None:
        """An agent shall end, as the server said."""
        if pinned := self._agents.get(agent_id):
            self._ended.append((agent_id, pinned.incarnation))

    async def view(self) -> WorkerView | None:
        """Return what this worker shall hold, None when it was given up; a server that started anew is told first.

        Once more if it started anew meanwhile: what it then says lacks what it was not told.
        """
        connection = self._place.store.connection
        while True:
            run = await connection.server_run()
            view = await self._view_in(run)
            if await connection.server_run() == run:
                return view

    async def _view_in(self, run: str) -> WorkerView | None:
        place = self._place
        is_new = "" not in (run, self._run) and run != self._run
        if is_new and not await self._tell_what_is_here():
            return None
        self._executor.note_told(run)
        if is_new:
            async with self._executor.quiet():
                await self._tell_what_is_missing()
            log.warning("redis.restarted", agents=len(self._agents.all()), tasks=len(self._executor.running()))
        view = await place.store.workers.view(place.pool, place.worker_id)
        self._run = run
        self._stopped.clear()
        return view

    async def _tell_what_is_here(self) -> bool:
        place = self._place
        agents = [replace(pinned.desired, status=_status(pinned.phase)) for pinned in self._agents.all()]
        if not await self._restore(agents):
            return False
        await place.store.tasks.restore(place.pool, place.worker_id, self._executor.records())
        self._executor.hand_in_again()
        return True

    async def _tell_what_is_missing(self) -> None:
        place, here = self._place, {pinned.id for pinned in self._agents.all()}
        view = await place.store.workers.view(place.pool, place.worker_id)
        if view is None:
            return
        missing = [
            desired
            for desired in view.agents
            if desired.agent_id not in here and (desired.agent_id, desired.incarnation) not in self._stopped
        ]
        for desired in missing:
            if (desired.agent_id, desired.incarnation) in self._ended:
                await self._end_again(desired)
        await self._restore([replace(desired, status=AgentStatus.PENDING) for desired in missing])
        tasks = {*view.tasks, *view.runs} - self._executor.running()
        await place.store.tasks.restore(place.pool, place.worker_id, dict.fromkeys(tasks, b""))

    async def _restore(self, agents: list[DesiredAgent]) -> bool:
        place = self._place
        return await place.store.workers.restore(
            place.pool, place.worker_id, self._identity, agents, drains=self._leaves()
        )

    async def _end_again(self, desired: DesiredAgent) -> None:
        try:
            await self._place.store.agents.terminate(desired.agent_id, detail=LOST_WHY)
        except UnknownAgent:
            return


def _status(phase: Phase) -> AgentStatus:
    return AgentStatus.PLACED if phase in (Phase.STARTING, Phase.RESTARTING) else AgentStatus.IDLE
