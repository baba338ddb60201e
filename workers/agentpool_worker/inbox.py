"""What this worker is told: commands, as hints, and the sets in Redis, as the truth.

A command that carries the next version is applied as it comes. Any gap, a command without a version (but for those to
look into the lanes), a beat that shows another version, and every new subscription lead to a resync: all that the
worker shall hold is read and compared with what is here. So a lost message costs a beat at most, and with publishing
forbidden everything goes on by beats alone.
"""

import asyncio
from collections.abc import Callable
from typing import assert_never

import msgspec
import structlog

from agentpool.errors import AgentPoolError
from agentpool.hosting import Host
from agentpool.protocol.commands import Cancel, Command, Drain, Run, Shutdown, Spawn, Terminate, Wake, decode_command
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import DesiredAgent, WorkerView
from agentpool.protocol.states import WorkerStatus
from agentpool.store.tasks import claimed_tasks
from agentpool_worker.executor import Executor
from agentpool_worker.place import WorkPlace
from agentpool_worker.plan import Action, CancelRun, CheckMailbox, Held, StartAgent, Step, StopAgent, diff, next_step
from agentpool_worker.restoring import Restoring
from agentpool_worker.turns import Turns

__all__ = ["Inbox"]

log = structlog.get_logger("worker")

RESYNC_RETRY_DELAY = 0.5


class Inbox:
    """`on_drain()`: this worker shall leave; `on_gone()`: it was given up. Both may be called again."""

    def __init__(
        self,
        place: WorkPlace,
        host: Host,
        executor: Executor,
        turns: Turns,
        restoring: Restoring,
        *,
        on_drain: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._place, self._agents, self._executor = place, host.agents, executor
        self._restoring = restoring
        self._on_drain, self._on_gone = on_drain, on_gone
        self._turn = turns.of("inbox", self.poke)
        self._woken = asyncio.Event()
        self._commands: list[Command] = []
        self._stale = True
        self.version = -1
        """The version of the worker's sets that is applied here."""

    # -- what others tell it ------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Let the loop turn."""
        self._woken.set()

    def receive(self, text: str) -> None:
        """A message came on this worker's channel."""
        try:
            command = decode_command(text)
        except msgspec.DecodeError as error:
            log.warning("inbox.unreadable", error=str(error))
            return
        if self._stale or self._commands:
            self._commands.append(command)
        else:
            self._accept(command)  # now, as nothing is ahead of it
        if self._stale:
            self.poke()

    def resync(self) -> None:
        """Compare what is here with what shall be."""
        self._stale = True
        self.poke()

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply what comes."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._take_turn()
            except AgentPoolError as error:  # Redis is away, or back without what its master has yet to write
                log.warning("redis.unavailable", doing="resync", error=str(error))
                asyncio.get_running_loop().call_later(RESYNC_RETRY_DELAY, self.poke)
            self._turn.answer()

    async def _take_turn(self) -> None:
        while self._commands or self._stale:
            if self._stale:
                await self._resync()
            commands, self._commands = self._commands, []
            for command in commands:
                self._accept(command)

    async def _resync(self) -> None:
        with self._turn.away():
            view = await self._restoring.view()
        self._stale = False
        if view is None:
            self._on_gone()
            return
        self._conform(view)

    def _conform(self, view: WorkerView) -> None:
        self.version = view.version
        if view.status is WorkerStatus.DRAINING:
            self._on_drain()
        held = {pinned.id: Held(pinned.incarnation, pinned.is_idle) for pinned in self._agents.all()}
        for action in diff(view, held):
            log.debug("inbox.action", action=repr(action))
            self._apply(action)
        self._executor.compare(view.tasks, view.cancels)

    def _apply(self, action: Action) -> None:
        match action:
            case StopAgent(agent_id):
                self._agents.stop(agent_id)
            case StartAgent(desired):
                self._agents.start(desired)
            case CheckMailbox(agent_id):
                self._executor.wake_agent(split_id(agent_id)[1])
            case CancelRun(task_id):
                self._executor.cancel(task_id)
            case _:
                assert_never(action)

    # -- commands -----------------------------------------------------------------------------------------------

    def _accept(self, command: Command) -> None:
        """Apply a command unless it is known already; a gap before it means that another was missed."""
        if command.process_id != self._place.worker_id:
            return
        if command.version == 0:
            self._heed(command)
            return
        match next_step(self.version, command.version):
            case Step.OBEY:
                self.version = command.version
                self._obey(command)
            case Step.RESYNC:
                self._stale = True
            case Step.IGNORE:
                pass

    def _heed(self, command: Command) -> None:
        """A command without a version changed no set: one to look into the lanes, or what Redis must bear out."""
        if isinstance(command, Wake) and not command.agent_id:
            self._executor.wake_lanes()
        else:
            self._stale = True

    def _obey(self, command: Command) -> None:
        match command:
            case Spawn():
                self._agents.start(DesiredAgent.of(command))
            case Terminate(agent_id=agent_id):
                self._restoring.note_end(agent_id)
                self._agents.stop(agent_id)
            case Wake(agent_id=""):
                self._executor.wake_lanes()
            case Wake(agent_id=agent_id):
                self._executor.wake_agent(split_id(agent_id)[1])
            case Run(tasks=tasks):
                self._executor.take(claimed_tasks(tasks))
            case Cancel(task_id=task_id):
                self._executor.cancel(task_id)
            case Drain():
                self._on_drain()
            case Shutdown():
                # A hint like the others: whether it is true stands in Redis.
                self._stale = True
            case _:
                assert_never(command)
