"""Whether a task that failed is tried again, and when."""

from agentpool.protocol.retrying import RetryPolicy

__all__ = ["next_retry"]


def next_retry(policy: RetryPolicy, attempt: int, error_types: tuple[str, ...], chance: float) -> float | None:
    """Return the seconds until the next attempt, or None when there is none.

    `attempt` is the one that failed, from 1; `error_types` names the class of what it raised and its bases; `chance` is
    a random number from 0 to 1.
    """
    if attempt >= policy.attempts or (policy.on and not set(policy.on) & set(error_types)):
        return None
    try:
        wait = min(policy.max_delay, policy.delay * float(policy.backoff) ** (attempt - 1))
    except OverflowError:
        wait = policy.max_delay if policy.delay else 0.0
    return wait * (1 - 0.5 * chance) if policy.jitter else wait
