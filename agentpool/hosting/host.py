"""A host: pinned agents and warm agents by type of one process, within one capacity, and the tasks they carry out."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from agentpool.agent import AgentType
from agentpool.errors import AgentFailed, AgentPoolError
from agentpool.hosting.agents import Agents
from agentpool.hosting.by_type import ByType
from agentpool.hosting.place import Place
from agentpool.hosting.run import Run

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

    def begin(self, run: Run) -> None:
        """Begin a task on the agent that it names, or on one of its type; `run.done` is told of its end.

        When that is recorded, `finish` must be called: until then a pinned agent takes no other task.
        """
        name = run.task.header.agent_name
        if name and (held := self.agents.get(f"{self.place.pool}/{name}")):
            held.begin(run)  # whatever becomes of the run, the agent is told of its end
        try:
            if run.why:
                raise AgentPoolError(run.why)  # it was told to stop before it began
            if name:
                self._begin_on_pinned(run)
            else:
                self._begin_on_any(run)
        except Exception as error:
            if not isinstance(error, AgentPoolError):
                log.exception("task.broke", extra={"task_id": run.task.id})
            run.fail(error)

    def has_idle(self, agent_type: str, tenant: str) -> bool:
        """Tell whether a warm agent of this type can take a task now."""
        type = self.place.types.get(agent_type)
        return type is not None and self.by_type.has_idle(type, tenant)

    def release(self, run: Run) -> None:
        """Keep the agent of a run by type that has ended for the next one."""
        lease, run.lease = run.lease, None
        if lease:
            self.by_type.release(lease)

    def pass_on(self, run: Run, next: Run) -> bool:
        """Begin a task on the agent of a run of the same type and tenant that has ended, under the same lease; False,
        and nothing happens, when the agent must be released first.
        """
        lease = run.lease
        if lease is None or self.by_type.is_over or not lease.may_stay():
            return False
        run.lease, next.lease = None, lease
        run.mark, next.mark = 0, run.mark
        self.begin(next)
        return True

    def finish(self, run: Run, *, has_mail: bool) -> None:
        """The end of a task is recorded: its agent can take the next one."""
        if run.pinned:
            run.pinned.finish(run, has_mail)

    async def close(self) -> None:
        """Stop the agents kept by type; pinned ones are stopped or handed over one by one."""
        await self.by_type.close()

    @staticmethod
    def _begin_on_pinned(run: Run) -> None:
        instance = run.pinned.instance if run.pinned else None
        if run.pinned is None or instance is None:
            raise AgentFailed("the agent is not running")
        run.perform(instance.run, run.decode(instance.type), instance.id, run.pinned.incarnation)

    def _begin_on_any(self, run: Run) -> None:
        header = run.task.header
        type = self.place.types.get(header.agent_type) or self.place.type(header.agent_type)
        input = run.decode(type)
        lease = run.lease = run.lease or self.by_type.take_idle(type, header.tenant)
        if lease:
            run.perform(lease.begin, input, lease.agent_id)
        else:
            making = asyncio.create_task(self._make_and_begin(run, type, input), name=f"agent for {run.task.id}")
            making.add_done_callback(lambda _: self._was_stopped(run, making))
            run.wait_for_agent(making)

    async def _make_and_begin(self, run: Run, type: AgentType, input: Any) -> None:
        try:
            run.lease = await self.by_type.acquire(type, run.task.header.tenant)
        except Exception as error:  # noqa: BLE001 (whatever it is, the task must come to an end)
            run.fail(error)
        else:
            if run.why:
                run.fail(AgentPoolError(run.why))
            else:
                run.perform(run.lease.begin, input, run.lease.agent_id)

    @staticmethod
    def _was_stopped(run: Run, making: "asyncio.Task[None]") -> None:
        """End a run that was told to stop while its agent was made, perhaps before the first step of that."""
        if making.cancelled() and run.why:
            run.fail(AgentPoolError(run.why))
