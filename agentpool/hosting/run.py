"""One task: its input decoded, the agent's `run()` called, what came of it written down as data."""

import asyncio
import random
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agentpool.agent import AgentType, Context
from agentpool.clock import monotonic
from agentpool.errors import AgentLimitError, AgentPoolError, InvalidInput
from agentpool.hosting.place import Place
from agentpool.policy.retries import next_retry
from agentpool.pool import StartFailed
from agentpool.pool.calls import MESSAGE_CHARACTERS_MAX, Call, Ended, Tell, brief, describe
from agentpool.protocol.codec import encode_json
from agentpool.protocol.retrying import RetryPolicy
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import ClaimedTask, Outcome, TaskError

if TYPE_CHECKING:
    from agentpool.hosting.pinned import Pinned

__all__ = ["GIVE_BACK", "Ending", "Run"]

GIVE_BACK = "the task is given back"
"""A run that is told to stop for this goes back to where it waited, as if it had not begun."""

STOPPED = {
    "terminated": (TaskStatus.TERMINATED, "AgentTerminated", "the agent was terminated"),
    "agent_failed": (TaskStatus.FAILED, "AgentFailed", "the agent failed while the task ran; see its last_error"),
}
"""What a run that was told to stop comes to; for all other reasons, given in words, it was cancelled."""

FAILED, SUCCEEDED = TaskStatus.FAILED, TaskStatus.SUCCEEDED

Verdict = Literal["done", "dead", "unstarted", "retry", "back"]


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How a run ended, and what becomes of its task: done, dead (a dead letter), unstarted (a dead letter because its
    agent cannot be started), retry after `delay` s, or back to where it waited, without that it counts: at once, or
    after `delay` s because its agent could not be started this time.
    """

    verdict: Verdict
    outcome: Outcome
    delay: float = 0.0


class Run:
    """A task that this host shall carry out, from its claim to its end; it can be stopped at any moment.

    `done(run, ending)` is called once, in the loop, never from within `Host.begin`. `pinned` is the agent that it was
    begun on, if it names one.
    """

    __slots__ = (
        "_call",
        "_context",
        "_place",
        "_raised",
        "_starting",
        "done",
        "duration_ms",
        "key",
        "lease",
        "mark",
        "own_ms",
        "pinned",
        "policy",
        "runaway",
        "taken",
        "task",
        "why",
    )

    def __init__(self, place: Place, task: ClaimedTask, done: "Callable[[Run, Ending], object]") -> None:
        self.task, self.done, self.why = task, done, ""
        self.key = _key_of(task.header.agent_type, task.header.tenant)
        """Tasks by type with the same key can use one another's agents."""
        self.pinned: Pinned | None = None
        self.lease: Any = None
        """The lease of an agent by type, while the run has one."""
        self.policy: RetryPolicy | None = None
        """That of the agent's class."""
        self.taken = monotonic()
        """When it came to this host."""
        self.duration_ms = 0.0
        self.own_ms: float | None = None
        """What `run()` took, without the time for which it was ready and the loop had other things to do before and
        after it; None when it did not return.
        """
        self.mark = 0
        self.runaway = False
        """The agent ignored that it was cancelled, and goes on."""
        self._place = place
        self._call: Call | None = None
        self._context: Context | None = None
        self._starting: asyncio.Task[None] | None = None
        self._raised: tuple[str, ...] | None = None

    # -- its course ---------------------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """Cancel the run; the first reason counts. `why` is a key of `STOPPED`, `GIVE_BACK`, or a reason in words."""
        if self.why:
            return
        self.why = why
        if self._call:
            self._call.stop(why)
        elif self._starting:
            self._starting.cancel()

    def wait_for_agent(self, starting: "asyncio.Task[None]") -> None:
        """An agent is being made for it, in this task, which is cancelled when the run is told to stop."""
        self._starting = starting
        # Whoever dies of making an agent shall be blamed, and not do it for ever.
        self.mark = self._place.marks.begin(self.task.id)

    @property
    def has_begun(self) -> bool:
        """Tell whether the agent's `run()` was called."""
        return self._call is not None

    def decode(self, type: AgentType) -> Any:
        """Return the typed input; raises `InvalidInput`."""
        self.policy = type.cls.retry
        if self.task.envelope is None:
            raise InvalidInput("the task's record cannot be read: it was not written by agentpool's client")
        return type.decode(self.task.envelope.input)

    def perform(
        self, begin: Callable[[Context, Any, float | None, Tell], Call], input: Any, agent_id: str, fence: int = 0
    ) -> None:
        """Call the agent's `run()` by `begin`; what it comes to is told to `done`."""
        task, place = self.task, self._place
        envelope = task.envelope
        assert envelope is not None
        self._starting = None
        timeout = envelope.timeout_ms / 1000 or place.settings.task_timeout or None
        mark = self.mark = place.marks.begin(task.id, monotonic() + timeout if timeout else 0.0, self.mark)
        context = self._context = place.context_of(task, agent_id, fence, mark)
        self._call = begin(context, input, timeout, self._ended)

    def conclude(self, outcome: Outcome) -> None:
        """End a run that did not reach an agent, in the loop's next step."""
        asyncio.get_running_loop().call_soon(self._tell, self._complete(outcome))

    def fail(self, error: BaseException) -> None:
        """End a run for which there was no agent."""
        self._unmark()
        if self.why:
            self.conclude(stopped(self.why))
        elif isinstance(error, InvalidInput):
            word = TaskError(type=type(error).__name__, message=str(error), path=error.path)
            self.conclude(failed(TaskStatus.INVALID, word))
        elif isinstance(error, StartFailed):
            word = TaskError(type="AgentFailed", message=str(error), traceback=error.traceback)
            ending = self._after_failed_start(self._complete(failed(FAILED, word)))
            asyncio.get_running_loop().call_soon(self.done, self, ending)
        elif isinstance(error, AgentPoolError):
            self.conclude(failed(FAILED, TaskError(type=type(error).__name__, message=str(error))))
        else:
            self.conclude(failed(FAILED, describe(error)))

    # -- its end ------------------------------------------------------------------------------------------------

    def _ended(self, call: Call, ended: Ended) -> None:
        context = self._context
        assert context is not None
        self.duration_ms = round(1e6 * (call.over_at - call.began)) / 1000
        self.own_ms = None if call.own_s is None else 1000 * call.own_s
        tokens = context.token_count
        outcome = self._returned(ended.value, tokens) if ended.well else self._complete(self._failure(ended), tokens)
        if ended.kind == "abandoned":
            self.mark = 0  # the code goes on under its number, which must not be another's then
        is_done = outcome.status is SUCCEEDED and not self.why
        self.done(self, Ending("done", outcome) if is_done else self._ending(outcome))
        if self.mark:  # it was not left to the next task of the agent
            self._unmark()

    def _unmark(self) -> None:
        if self.mark:
            self._place.marks.end(self.mark)
            self.mark = 0

    def _tell(self, outcome: Outcome) -> None:
        self.done(self, self._ending(outcome))

    def _ending(self, outcome: Outcome) -> Ending:
        if self.why == GIVE_BACK:
            return Ending("back", outcome)
        if outcome.status is not FAILED:
            return Ending("done", outcome)
        if self.task.header.option("parent") and not (self.policy or (self.task.envelope and self.task.envelope.retry)):
            return Ending("done", outcome)  # who waits for it has its own attempts; together they would multiply
        delay = self._retry_delay() if self._raised else None
        return Ending("dead", outcome) if delay is None else Ending("retry", outcome, delay)

    def _retry_delay(self) -> float | None:
        envelope = self.task.envelope
        policy = (envelope.retry if envelope else None) or self.policy or self._place.settings.retry
        chance = random.random()  # noqa: S311 (jitter, no secret)
        return next_retry(policy, self.task.attempt, self._raised or (), chance)

    def _after_failed_start(self, outcome: Outcome) -> Ending:
        settings = self._place.settings
        if self.task.starts + 1 >= settings.boot_failures_max:
            return Ending("unstarted", outcome)
        delay: float = min(settings.boot_backoff * 2**self.task.starts, settings.boot_backoff_max)
        return Ending("back", outcome, max(delay, 0.001))

    def _returned(self, value: Any, tokens: int) -> Outcome:
        settings = self._place.settings
        try:
            result = encode_json(value)
        except Exception as problem:  # noqa: BLE001 (an agent's own classes may raise anything here)
            text = f"run() returned a {type(value).__name__}, which has no JSON form: {brief(problem)}"
            error = TaskError(type="InvalidResult", message=text[:MESSAGE_CHARACTERS_MAX])
            return self._complete(failed(FAILED, error), tokens)
        if len(result) > settings.max_result_bytes:
            bound = settings.max_result_bytes
            text = f"The result has {len(result)} bytes; the bound is {bound}. Return a reference to it instead."
            error = TaskError(type="ResultTooLarge", message=text)
            return self._complete(failed(FAILED, error), tokens)
        return Outcome(
            SUCCEEDED, settings.worker_id, self.pinned.id if self.pinned else "", msgspec.Raw(result), None,
            self.duration_ms, tokens, self.task.attempt,
        )  # fmt: skip

    def _failure(self, ended: Ended) -> Outcome:
        self.runaway = ended.kind == "abandoned"
        if ended.timed_out:
            return failed(TaskStatus.TIMED_OUT, TaskError(type="TaskTimedOut", message=f"the task {ended.why}"))
        if ended.why:
            if ended.why == "agent_failed":
                self._raised = ("AgentFailed",)
            return stopped(ended.why)
        error = ended.error
        assert error is not None
        # What a task may not use it may not use the next time either.
        self._raised = () if isinstance(error, AgentLimitError) else tuple(c.__name__ for c in type(error).__mro__)
        return failed(FAILED, describe(error))

    @property
    def _agent_id(self) -> str:
        name = self.task.header.agent_name
        return f"{self._place.pool}/{name}" if name else ""

    def _complete(self, outcome: Outcome, tokens: int = 0) -> Outcome:
        return msgspec.structs.replace(
            outcome,
            process_id=self._place.settings.worker_id,
            agent_id=self._agent_id,
            duration_ms=self.duration_ms,
            tokens=tokens,
            attempts=self.task.attempt if self.has_begun else self.task.attempt - 1,
        )


@lru_cache(maxsize=1024)
def _key_of(agent_type: str, tenant: str) -> tuple[str, str]:
    """Return one object for many runs: the same one is found faster than one that is equal."""
    return agent_type, tenant


def failed(status: TaskStatus, error: TaskError) -> Outcome:
    """Return the outcome of a task that did not succeed."""
    return Outcome(status=status, error=error)


def stopped(why: str) -> Outcome:
    """Return the outcome of a task whose run was told to stop."""
    status, name, text = STOPPED.get(why, (TaskStatus.CANCELLED, "TaskCancelled", why))
    return failed(status, TaskError(type=name, message=text))
