"""A host: pinned agents and warm agents by type of one process, within one capacity, and the tasks they carry out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from agentpool.errors import AgentPoolError
from agentpool.hosting.agents import Agents
from agentpool.hosting.by_type import ByType
from agentpool.hosting.place import Place
from agentpool.hosting.run import Run, failed
from agentpool.pool import StartFailed
from agentpool.pool.calls import describe
from agentpool.protocol.records import Outcome, TaskError
from agentpool.protocol.states import TaskStatus

__all__ = ["Host"]

log = logging.getLogger(__name__)


class Host:
    """`on_idle(name, has_mail)`: a pinned agent can take a task; `on_change()`: slots were taken or freed;
    `resync()`: look again at what shall be here.
    """  # fmt: skip

    def __init__(
        self,
        place: Place,
        *,
        on_idle: Callable[[str, bool], None],
        on_change: Callable[[], None],
        resync: Callable[[], None],
    ) -> None:
        self.place, self._on_change = place, on_change
        self.agents = Agents(place, on_idle=on_idle, on_change=self._changed, resync=resync)
        self.by_type = ByType(place, lambda: self.agents.count)

    def _changed(self) -> None:
        self.by_type.make_room()
        self._on_change()

    async def carry_out(self, run: Run) -> Outcome:
        """Run a task on the agent that it names, or on one of its type, to its outcome, whatever happens.

        When the outcome is recorded, `finish` must be called: until then a pinned agent takes no other task.
        """
        name = run.task.header.agent_name
        agent_id = f"{self.place.pool}/{name}" if name else ""
        if name and (pinned := self.agents.get(agent_id)):
            pinned.begin(run)
        outcome = await self._to_an_outcome(run, lambda: self._on_pinned(run) if name else self._on_any(run))
        return msgspec.structs.replace(outcome, process_id=self.place.settings.worker_id, agent_id=agent_id)

    def finish(self, run: Run, *, has_mail: bool) -> None:
        """The outcome of a task is recorded: its agent can take the next one."""
        if run.pinned:
            run.pinned.finish(run, has_mail)

    async def close(self) -> None:
        """Stop the agents kept by type; pinned ones are stopped or handed over one by one."""
        await self.by_type.close()

    async def _on_pinned(self, run: Run) -> Outcome:
        pinned = run.pinned
        if pinned is None or pinned.instance is None:
            return failed(TaskStatus.FAILED, TaskError(type="AgentFailed", message="the agent is not running"))
        instance = pinned.instance
        input = run.decode(instance.type)
        return await run.perform(instance.run, input, agent_id=instance.id, fence=pinned.incarnation)

    async def _on_any(self, run: Run) -> Outcome:
        type = self.place.type(run.task.header.agent_type)
        input = run.decode(type)
        with run.cancelling_this_task():
            lease = await self.by_type.acquire(type, run.task.header.tenant)
        try:
            return await run.perform(lease.begin, input, agent_id=lease.agent_id)
        finally:
            self.by_type.release(lease)

    @staticmethod
    async def _to_an_outcome(run: Run, perform: Callable[[], Awaitable[Outcome]]) -> Outcome:
        try:
            return run.stopped_early() or await perform()
        except StartFailed as error:
            word = TaskError(type="AgentFailed", message=str(error), traceback=error.traceback)
            return run.stopped_early() or failed(TaskStatus.FAILED, word)
        except AgentPoolError as error:
            return run.stopped_early() or run.refused(error)
        except asyncio.CancelledError:
            early = run.stopped_early()
            if early is None:
                raise
            return early
        except Exception as error:
            log.exception("task.broke", extra={"task_id": run.task.id})
            return failed(TaskStatus.FAILED, describe(error))
