"""Refusals as words, as scripts and local pools give them, mapped to our errors in one place."""

from collections.abc import Callable
from typing import Any

from agentpool.errors import (
    AgentLimitError,
    AgentPoolError,
    AgentTerminated,
    DuplicateAgent,
    IdempotencyConflict,
    InputTooLarge,
    InvalidInput,
    QueueFull,
    UnknownAgent,
    UnknownAgentType,
    UnknownPool,
    UnknownTask,
    UnknownWorker,
    Unplaceable,
)

__all__ = ["refusal"]

Refusal = Callable[[str, str, list[Any]], AgentPoolError]

_REFUSALS: dict[str, Refusal] = {
    "unknown_pool": lambda pool, _, __: UnknownPool(
        pool, hint=" Does its master run? List pools with: agentpool pools"
    ),
    "unknown_type": lambda _, what, known: UnknownAgentType(what, known),
    "unknown_agent": lambda pool, what, _: UnknownAgent(f"{pool}/{what}"),
    "unknown_worker": lambda _, what, __: UnknownWorker(what, hint=" List workers with: agentpool workers"),
    "unknown_task": lambda _, what, __: UnknownTask(what),
    "ended": lambda pool, what, how: AgentTerminated(f"Agent {pool}/{what} has ended: {how[0]}"),
    "duplicate": lambda pool, what, _: DuplicateAgent(f"{pool}/{what}"),
    "full": lambda pool, what, size: QueueFull(f'The queue of {what} in pool "{pool}"', *_sizes(size)),
    "pool_full": lambda pool, _, size: QueueFull(f'The queue of all tasks in pool "{pool}"', *_sizes(size)),
    "limited": lambda pool, what, data: AgentLimitError(
        data[0], int(data[1]), f'({what}, pool "{pool}")', int(data[2]) / 1000 or None
    ),
    "conflict": lambda pool, what, known: IdempotencyConflict(
        f"The idempotency key of this task for {what} was used for task {known[0]} with another input. "
        "Use another key, or the same input."
    ),
    "unmatched": lambda _, what, data: Unplaceable(what, data[0], data[1:]),
    "too_large": lambda _, __, size: InputTooLarge(int(size[0]), int(size[1])),
    "outside": lambda pool, _, bounds: InvalidInput(
        f'Pool "{pool}" may have {bounds[0]} to {bounds[1]} workers (min_workers to max_workers).', "$.workers"
    ),
    "starting": lambda _, what, __: InvalidInput(f"Worker {what} is still starting; try again in a moment."),
}


def _sizes(data: list[Any]) -> tuple[int, int, float | None]:
    """Read depth, bound and, where it is known, the time in s after which to try again."""
    return int(data[0]), int(data[1]), int(data[2]) / 1000 if len(data) > 2 else None


def refusal(pool: str, what: str, answer: list[Any]) -> AgentPoolError:
    """Return the error for a refusal, its word first; `what` is the name that was asked for."""
    word, *data = answer
    return _REFUSALS[word](pool, what, data)
