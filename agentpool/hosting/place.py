"""What every part of a host knows: whose process it is, its settings, its types, where things are written down."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from agentpool.agent import AgentType, Context
from agentpool.config import PoolSettings
from agentpool.errors import UnknownAgentType
from agentpool.pool import PoolConfig
from agentpool.protocol.retrying import RetryPolicy
from agentpool.protocol.tasks import NESTED_MAX, ClaimedTask
from agentpool.protocol.zygote import WorkerSettings

__all__ = ["HostSettings", "Marks", "Place", "Registry"]


NEVER = 2**31


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds. `agents` holds the deadlines of calls into agents, and when agents by type are renewed."""

    pool: str
    worker_id: str
    capacity: int
    agents: PoolConfig
    task_timeout: float
    max_result_bytes: int
    retry: RetryPolicy
    """Of tasks that say nothing, and whose agent's class does not either."""
    boot_failures_max: int
    boot_backoff: float
    boot_backoff_max: float

    @classmethod
    def of(cls, source: PoolSettings | WorkerSettings, pool: str, worker_id: str, capacity: int) -> "HostSettings":
        """Return what a pool's settings mean for one host; where they say 0 for no limit, a `PoolConfig` says None."""
        return cls(
            pool=pool,
            worker_id=worker_id,
            capacity=capacity,
            agents=PoolConfig(
                min_size=0,
                # The host keeps to its capacity itself; here those that still clean up must not hold up the next one,
                # nor those that wait for tasks of their own, which may be of their own type.
                max_size=(2 + NESTED_MAX) * capacity,
                # A task by type holds a slot and fails with its own agent's start, no sooner.
                breaker_failures=NEVER,
                health_timeout=source.agent_start_timeout,
                recycles_at_once=1,
                start_timeout=source.agent_start_timeout,
                stop_timeout=source.agent_stop_timeout,
                cancel_grace=source.agent_stop_timeout,
                idle_timeout=source.agent_idle_timeout,
                recycle_threshold=source.recycle_threshold or None,
                requests_per_quota=source.requests_per_quota or None,
                max_instance_age=source.max_instance_age or None,
                max_recycles=source.max_recycles or None,
                max_memory_mb=source.max_memory_mb or None,
                max_cpu_percent=source.max_cpu_percent or None,
            ),
            task_timeout=source.task_timeout,
            max_result_bytes=source.max_result_bytes,
            retry=RetryPolicy(
                attempts=source.retry_attempts,
                delay=source.retry_delay,
                backoff=source.retry_backoff,
                max_delay=source.retry_max_delay,
            ),
            boot_failures_max=source.boot_failures_max,
            boot_backoff=source.boot_backoff,
            boot_backoff_max=source.boot_backoff_max,
        )


class Registry(Protocol):
    """Where it is written down what becomes of pinned agents. Each call returns when that is done, however long.

    An agent is meant by name and incarnation; an answer that tells of another incarnation means: it is no longer here.
    """

    async def confirm(self, name: str, incarnation: int) -> int | None:
        """The agent has started; returns how many tasks wait for it, or None when it belongs elsewhere now."""

    async def fail(self, name: str, incarnation: int, *, failures: int, error: str, final: bool) -> bool:
        """The agent failed; `final` ends it. Returns False when it belongs elsewhere now."""

    async def snapshot(self, name: str) -> str:
        """Return the snapshot that the agent came with, or ''."""

    async def beat(self, names: Sequence[str]) -> None:
        """These agents said that they are healthy; at most 100."""

    async def retire_idle(self, agent_id: str) -> bool:
        """End the agent if it is idle and has no mail; tells whether it has ended."""

    async def idle_for(self, agent_id: str) -> float:
        """Return for how many s an agent that came from elsewhere has been idle."""


class Marks:
    """Where it is marked which tasks have begun. This one marks nothing: who shares the process dies with it."""

    def begin(self, task_id: str, deadline: float = 0.0, mark: int = 0) -> int:
        """A task begins, or an agent is made for it, or, by `agent_mark`, a pinned agent; returns the number of its
        mark, 0 for none.

        `deadline` is by the monotonic clock, 0 for none. `mark` is one that it has already, or is left to it.
        """
        return 0

    def end(self, mark: int) -> None:
        """The task with this mark has ended."""


class Place:
    """Shared by the parts of one host. `run_by_type(context, type, input, timeout=…)` is what `ctx.run` calls, and
    `emit(context, progress)` what `ctx.emit` does.
    """

    def __init__(
        self,
        settings: HostSettings,
        types: Mapping[str, AgentType],
        registry: Registry,
        run_by_type: Callable[..., Awaitable[Any]],
        *,
        emit: Callable[[Context, Any], None] | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.settings, self.types, self.registry = settings, types, registry
        self.pool, self.marks = settings.pool, marks or Marks()
        self._run_by_type, self._emit = run_by_type, emit

    def type(self, name: str) -> AgentType:
        """Return a known type; nothing is ever imported because a message names it."""
        try:
            return self.types[name]
        except KeyError:
            raise UnknownAgentType(name, sorted(self.types)) from None

    def context(
        self,
        agent_id: str,
        task_id: str | None = None,
        *,
        tenant: str,
        project: str = "",
        fence: int = 0,
        mark: int = 0,
    ) -> Context:
        """Return what an agent is told of itself for its life."""
        return Context(
            agent_id=agent_id,
            pool=self.pool,
            tenant=tenant,
            project=project or None,
            task_id=task_id,
            fence=fence,
            mark=mark,
            run=self._run_by_type,
        )

    def context_of(self, task: ClaimedTask, agent_id: str, fence: int, mark: int) -> Context:
        """Return what an agent is told of itself for one task."""
        header, envelope = task.header, task.envelope
        project = (envelope.project if envelope else "") or None
        depth = int(header.option("depth") or 0) if header.options else 0
        # By position: by name it would take four times as long.
        return Context(
            agent_id, self.pool, header.tenant, project, task.id, task.attempt, fence, task.tokens_max, depth, mark,
            self._run_by_type, self._emit,
        )  # fmt: skip
