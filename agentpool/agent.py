"""What agent authors implement: the `Agent` base class and the `Context` an agent receives."""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, Literal

import msgspec
import structlog

from agentpool.errors import AgentLimitError, ConfigError, InvalidInput
from agentpool.protocol.codec import valid_name
from agentpool.protocol.records import TypeInfo
from agentpool.protocol.retrying import RetryPolicy

__all__ = ["Agent", "AgentType", "Context"]


class Context:
    """What an agent knows of itself and its present task.

    `fence` grows each time the agent is placed: hand it to outside systems that must refuse an older copy.
    """

    __slots__ = (
        "_emit",
        "_log",
        "_run",
        "agent_id",
        "attempt",
        "depth",
        "fence",
        "mark",
        "pool",
        "project",
        "task_id",
        "tenant",
        "token_count",
        "tokens_max",
    )

    def __init__(
        self,
        agent_id: str,
        pool: str,
        tenant: str = "default",
        project: str | None = None,
        task_id: str | None = None,
        attempt: int = 1,
        fence: int = 0,
        tokens_max: int = 0,
        depth: int = 0,
        mark: int = 0,
        run: "Callable[..., Awaitable[Any]] | None" = None,
        emit: "Callable[[Context, Any], None] | None" = None,
    ) -> None:
        self.agent_id, self.pool, self.tenant, self.project = agent_id, pool, tenant, project
        self.task_id, self.attempt, self.fence = task_id, attempt, fence
        self.token_count, self.tokens_max = 0, tokens_max
        self.depth, self.mark = depth, mark
        self._run, self._emit = run, emit
        self._log: Any = None

    @property
    def log(self) -> Any:
        """A structlog logger bound to agent, pool and task; made at first use, as most tasks log nothing."""
        if self._log is None:
            self._log = structlog.get_logger("agent").bind(agent_id=self.agent_id, pool=self.pool, task_id=self.task_id)
        return self._log

    @log.setter
    def log(self, logger: Any) -> None:
        self._log = logger

    def tokens(self, n: int) -> None:
        """Add `n` tokens used to the present task's account; `n` must not be negative.

        Raises `AgentLimitError` with the code TASK_TOKEN_LIMIT when the task has used more than its tenant's tasks may.
        """
        if n < 0:
            raise ValueError(f"tokens({n}): a count of tokens cannot be negative")
        self.token_count += n
        if self.tokens_max and self.token_count > self.tokens_max:
            raise AgentLimitError("TASK_TOKEN_LIMIT", self.tokens_max, f"Task {self.task_id} used {self.token_count}.")

    def emit(self, progress: Any) -> None:
        """Report progress of the present task, as JSON, to those who follow it with `handle.events()`.

        What cannot be written as JSON is a `TypeError`.
        """
        if self._emit is None:
            self.log.info("task.progress", progress=progress)
        else:
            self._emit(self, progress)

    async def run(self, agent_type: "str | type[Agent]", input: Any, *, timeout: float | None = None) -> Any:
        """Run a task by type in the same pool for the same tenant and return its result.

        The present task lends its slot to it while it waits; at most 8 tasks may wait for one another.
        """
        if self._run is None:
            raise RuntimeError("this context belongs to no pool, so it cannot run tasks")
        return await self._run(self, agent_type, input, timeout=timeout)


class Agent:
    """Base class of agents: override `run`, and what else is needed.

    `start` makes the agent ready (a spawn is complete when it returns), `background` lives as long as the agent and
    fails it by raising, `stop` cleans up, `snapshot`/`restore` carry state to another worker. `healthy` is asked at
    each heartbeat of an agent that was spawned with a `heartbeat_interval`, and of an agent that is kept warm before
    it gets its next task.
    """

    scope: ClassVar[Literal["tenant", "shared"]] = "tenant"
    on_redis_loss: ClassVar[Literal["continue", "stop"]] = "continue"
    labels: ClassVar[frozenset[str] | tuple[str, ...]] = ()
    start_timeout: ClassVar[float | None] = None
    retry: ClassVar[RetryPolicy | None] = None

    async def start(self, ctx: Context) -> None:
        """Make the agent ready."""

    async def run(self, ctx: Context, input: Any) -> Any:
        """Do one task and return its result."""
        raise NotImplementedError(f"{type(self).__name__} has no run(): define `async def run(self, ctx, input)`")

    async def stop(self, ctx: Context) -> None:
        """Clean up; called once, also before a move to another worker."""

    async def healthy(self, ctx: Context) -> bool:
        """Tell whether the agent can go on."""
        return True


class AgentType:
    """An agent class with what is read from its hints, once: how to decode its input and name itself."""

    __slots__ = ("cls", "decoder", "has_background", "has_restore", "has_snapshot", "input_type", "name")

    def __init__(self, cls: type[Agent]) -> None:
        self.cls, self.name = cls, cls.__name__
        self.input_type = input_type_of(cls)
        try:
            self.decoder = msgspec.json.Decoder(self.input_type)
        except TypeError as error:
            raise ConfigError(f"{self.name}.run: its input type cannot be decoded from JSON: {error}") from None
        self.has_background = callable(getattr(cls, "background", None))
        self.has_snapshot = callable(getattr(cls, "snapshot", None))
        self.has_restore = callable(getattr(cls, "restore", None))

    def decode(self, raw: bytes | msgspec.Raw) -> Any:
        """Decode and validate JSON input; `InvalidInput` names the path of the wrong field."""
        try:
            return self.decoder.decode(raw)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at ")
            raise InvalidInput(f"{self.name}: {message} at {path.strip('`') or '$'}", path.strip("`") or "$") from None
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{self.name}: the input is not valid JSON: {error}") from None

    def info(self) -> TypeInfo:
        """Return what is told to clients of this type."""
        labels: str | Iterable[str] = self.cls.labels
        return TypeInfo(
            name=self.name,
            module=self.cls.__module__,
            scope=self.cls.scope,
            labels=(labels,) if isinstance(labels, str) else tuple(sorted(labels)),
            start_timeout=self.cls.start_timeout,
            on_redis_loss=self.cls.on_redis_loss,
        )


def check_agent_class(spec: str, cls: Any) -> type[Agent]:
    """Return `cls` if it can be used as an agent class; raise `ConfigError` naming `spec` if not."""
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ConfigError(f"{spec} is no subclass of agentpool.Agent")
    if not inspect.iscoroutinefunction(cls.run) or cls.run is Agent.run:
        raise ConfigError(f"{spec} needs a method `async def run(self, ctx, input)`")
    if cls.scope not in ("tenant", "shared"):
        raise ConfigError(f'{spec}.scope is {cls.scope!r}: it may be "tenant" or "shared"')
    if cls.on_redis_loss not in ("continue", "stop"):
        raise ConfigError(f'{spec}.on_redis_loss is {cls.on_redis_loss!r}: it may be "continue" or "stop"')
    if cls.retry is not None and not isinstance(cls.retry, RetryPolicy):
        raise ConfigError(f"{spec}.retry is {cls.retry!r}: it may be a RetryPolicy, or None")
    for label in (cls.labels,) if isinstance(cls.labels, str) else cls.labels:
        if not valid_name(label):
            raise ConfigError(f"{spec}.labels holds {label!r}: a label is 1 to 64 letters, digits, '_', '.' or '-'")
    return cls


def input_type_of(cls: type[Agent]) -> Any:
    """Return the declared type of `run`'s input, or `Any`."""
    parameters = list(inspect.signature(cls.run).parameters)
    return _hints(cls).get(parameters[2], Any) if len(parameters) > 2 else Any


def result_type_of(cls: type[Agent]) -> Any:
    """Return the declared type of `run`'s result, or `Any`."""
    return _hints(cls).get("return", Any)


def _hints(cls: type[Agent]) -> dict[str, Any]:
    """Return the type hints of `cls.run`; a name that cannot be resolved is the author's error."""
    try:
        return typing.get_type_hints(cls.run)
    except NameError as error:
        raise ConfigError(f"{cls.__name__}.run: a type hint cannot be resolved: {error}") from None
