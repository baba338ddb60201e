"""What `acquire()` returns: first the request for an agent, then the agent itself, until it is given back.

One object is both, as it is made on every acquire. A lease that was given back holds nothing, so it cannot disturb
whoever has the agent next.
"""

from asyncio import _get_running_loop as running_loop  # None where there is none
from asyncio import get_running_loop
from collections.abc import Awaitable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from agentpool.agent import AgentType, Context
from agentpool.clock import monotonic
from agentpool.errors import AgentFailed, AgentTerminated, InvalidInput, PoolClosed, TaskTimedOut
from agentpool.pool.calls import Call, Ended, Tell
from agentpool.pool.states import PooledState
from agentpool.protocol.codec import new_id

if TYPE_CHECKING:
    from agentpool.pool.member import Member
    from agentpool.pool.metrics import AgentFacts
    from agentpool.pool.pool import AgentPool

__all__ = ["Lease", "checked_input"]

ACTIVE = PooledState.ACTIVE


class Lease:
    """Await it, or enter it with `async with`, to have an agent. May be used once."""

    __slots__ = ("_asked", "_at_work", "_core", "_member", "_pool", "_priority", "_timeout")

    _at_work: "Member"
    """Whose task is under way, or was the last one; it may go on when the lease has ended."""

    def __init__(self, pool: "AgentPool", timeout: float | None, priority: int, member: "Member | None" = None) -> None:
        """`member` is an agent that was taken already."""
        self._pool, self._core = pool, pool._core
        self._timeout, self._priority = timeout, priority
        self._member, self._asked = member, member is not None

    def __await__(self) -> Generator[Any, Any, "Lease"]:
        if self._asked:
            raise RuntimeError("a lease can be acquired once: call pool.acquire() again")
        self._asked = True
        core = self._core
        if core.idle and core.short and get_running_loop() is core.loop:
            core.waits.at_once += 1
            core.counted.acquired += 1
            self._member = core.take_idle()
        else:
            self._member = yield from self._pool._acquirer.acquire(self._priority, self._timeout)
        return self

    def __aenter__(self) -> "Lease":
        return self

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> Awaitable[None]:
        member, self._member = self._member, None
        if member is not None:
            self._core.counted.released += 1
            if member.state is ACTIVE:
                self._core.give_back(member)
        return self._core.done  # a coroutine would cost as much as giving back

    def release(self) -> None:
        """Give the agent back; nothing happens when it was given back already. Its task, if one runs, is cancelled."""
        self._pool.release(self)

    def may_stay(self) -> bool:
        """Tell whether the agent may do another task before it is given back: it is due nowhere else first, to another
        request, to be asked for its health, or to be replaced.
        """
        member, core = self._member, self._core
        return not (
            member is None
            or member.attention
            or member.running
            or member.state is not ACTIVE
            or core.waiters.count
            or not core.short
        )

    # -- the agent ----------------------------------------------------------------------------------------------

    @property
    def agent_id(self) -> str:
        """The id of the agent."""
        return self._held().id

    def facts(self) -> "AgentFacts":
        """Return what is known of the agent."""
        return self._held().facts(monotonic())

    async def run(self, input: Any, *, timeout: float | None = None, context: Context | None = None) -> Any:
        """Run one task on the agent and return its result; what `run()` raises is raised here as it is.

        Raises `InvalidInput` before the agent sees anything, `TaskTimedOut`, `AgentTerminated`, `PoolClosed`. A
        cancelled caller cancels the task, and goes on when that has ended or was given up.
        """
        agent_id, core = self._held().id, self._core
        input = checked_input(core.type, input)
        context = context or core.make_context(agent_id, f"{core.name}/{new_id()}")
        call = self.begin(context, input, core.config.run_timeout if timeout is None else timeout)
        return _value_of(await call.result(), agent_id)

    def begin(self, context: Context, input: Any, timeout: float | None, tell: Tell | None = None) -> Call:
        """Begin one task, its input being as the agent declares it; `tell` is told of its end."""
        member, core = self._member, self._core
        if member is None or member.state is not ACTIVE:
            member = self._held()
        if running_loop() is not core.loop:
            core.check_loop()
        if member.running:
            raise RuntimeError(f"agent {member.id} does one task at a time: await the first one, or acquire another")
        member.running += 1
        member.requests += 1
        core.counted.requests += 1
        self._at_work = member
        return member.instance.run(context, input, timeout, self._ran, tell)

    def _ran(self, call: Call, ended: Ended) -> None:
        core, member, now = self._core, self._at_work, call.over_at
        if core.times_runs:
            core.runs.record(now - call.began)
        member.running -= 1
        if not ended.well:
            member.errors += 1
            core.counted.errors += 1
        elif not member.proved and core.circuit.note_run(member):
            core.spawner.fill()
        if now >= member.old_at or member.instance.requests >= member.requests_max:
            core.recycler.consider(member, now)
        if self._member is not member and not member.running and member.state is ACTIVE:
            core.give_back(member)  # the lease ended before its task did

    def _held(self) -> "Member":
        member = self._member
        if member is None:
            raise RuntimeError("this lease holds no agent: acquire it first, and use it before it is given back")
        if member.state is not ACTIVE:
            if self._core.closing:
                raise PoolClosed(f'Pool "{self._core.name}" was closed while agent {member.id} was held.')
            raise AgentTerminated(f"Agent {member.id} was ended while it was held. Acquire another one.")
        return member


def checked_input(type: AgentType, input: Any) -> Any:
    """Return input as the agent declares it: as it is, converted from plain data, or decoded from JSON bytes."""
    wanted = type.input_type
    if wanted is Any:
        return input
    if isinstance(input, bytes | msgspec.Raw) and wanted is not bytes:
        return type.decode(input)
    if input.__class__ is wanted:
        return input
    try:
        try:
            return msgspec.convert(input, wanted)
        except msgspec.ValidationError:
            return msgspec.convert(msgspec.to_builtins(input), wanted)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        path = path.strip("`") or "$"
        raise InvalidInput(f"{type.name}: {message} at {path}", path) from None
    except TypeError as error:
        raise InvalidInput(f"{type.name}: {error}") from None


def _value_of(ended: Ended, agent_id: str) -> Any:
    if ended.well:
        return ended.value
    if ended.timed_out:
        raise TaskTimedOut(f"The task on agent {agent_id} {ended.why}.")
    if ended.why == CLOSED:
        raise PoolClosed(f"The pool was closed while a task ran on agent {agent_id}.")
    if ended.why:
        raise AgentTerminated(f"The task on agent {agent_id} was stopped: {ended.why}.")
    if isinstance(ended.error, Exception):
        raise ended.error
    raise AgentFailed(ended.describe(f"run() of agent {agent_id}")) from ended.error


CLOSED = "the pool is closed"
