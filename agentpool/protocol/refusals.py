"""Refusals as words, as scripts and local pools give them, mapped to our errors in one place."""

from collections.abc import Callable
from typing import Any

from agentpool.errors import (
    AgentPoolError,
    AgentTerminated,
    DuplicateAgent,
    InputTooLarge,
    InvalidInput,
    QueueFull,
    UnknownAgent,
    UnknownAgentType,
    UnknownPool,
    UnknownTask,
    UnknownWorker,
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
    "full": lambda pool, what, size: QueueFull(f'The queue of {what} in pool "{pool}"', int(size[0]), int(size[1])),
    "too_large": lambda _, __, size: InputTooLarge(int(size[0]), int(size[1])),
    "outside": lambda pool, _, bounds: InvalidInput(
        f'Pool "{pool}" may have {bounds[0]} to {bounds[1]} workers (min_workers to max_workers).', "$.workers"
    ),
    "starting": lambda _, what, __: InvalidInput(f"Worker {what} is still starting; try again in a moment."),
}


def refusal(pool: str, what: str, answer: list[Any]) -> AgentPoolError:
    """Return the error for a refusal, its word first; `what` is the name that was asked for."""
    word, *data = answer
    return _REFUSALS[word](pool, what, data)
