"""The errors that only an in-process pool can raise."""

from agentpool.errors import AgentFailed, AgentPoolError

__all__ = ["AcquireTimeout", "SpawnCircuitOpen", "StartFailed", "StateRefused"]


class AcquireTimeout(AgentPoolError, TimeoutError):
    """No agent was free within the time allowed; the request was withdrawn and nothing waits."""

    code = "ACQUIRE_TIMEOUT"

    def __init__(self, pool: str, timeout: float) -> None:
        self.pool, self.timeout = pool, timeout
        super().__init__(f'Pool "{pool}" had no agent free within {timeout:g} s. Wait longer, or raise max_size.')


class StartFailed(AgentFailed):
    """The agent that was being made for this request could not be started.

    `reason` tells why, and `traceback` where its code raised, as text; it is '' when it did not.
    """

    def __init__(self, agent_id: str, reason: str, traceback: str = "") -> None:
        self.agent_id, self.reason, self.traceback = agent_id, reason, traceback
        super().__init__(f"Agent {agent_id} could not be started: {reason}")


class SpawnCircuitOpen(AgentPoolError):
    """Too many agents in a row did not start, or broke at once: the next is tried in `retry_in` s.

    `reason` is the last failure.
    """

    code = "SPAWN_CIRCUIT_OPEN"

    def __init__(self, pool: str, failures: int, retry_in: float, reason: str) -> None:
        self.pool, self.failures, self.retry_in, self.reason = pool, failures, retry_in, reason
        super().__init__(
            f'Pool "{pool}" starts no agents now: {failures} in a row did not start, or broke at once. The next try is '
            f"in {retry_in:.1f} s. Last failure: {reason}"
        )


class StateRefused(AgentPoolError):
    """A saved state cannot be used; the pool is as it was before."""

    code = "STATE_REFUSED"

    def __init__(self, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(
            f"The pool state in {place} is refused: {reason}. Restore it from a copy, or begin without it: "
            "load_state(…, start_clean=True)"
        )
