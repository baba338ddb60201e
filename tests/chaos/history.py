"""What clients asked for and what they were told, and what the harness saw beside that: plain data."""

from typing import Literal

import msgspec

from agentpool.clock import boottime

__all__ = ["Answer", "Fence", "History", "Loss", "Operation", "Outcome"]

Answer = Literal["pending", "acknowledged", "refused", "unknown", "broke"]
"""Unknown: Redis did not answer, so it may have been carried out or not. Broke: an error that is not one of ours."""


class Operation(msgspec.Struct):
    """One call. Times are in s by CLOCK_BOOTTIME."""

    number: int
    kind: str
    """submit, submit_many, run, cancel, spawn, terminate."""
    invoked: float
    answer: Answer = "pending"
    answered: float = 0.0
    error: str = ""
    tasks: tuple[str, ...] = ()
    """Ids that were accepted."""
    count: int = 1
    """Tasks that were handed in."""
    agent: str = ""
    """Id of the agent that is spawned, terminated or asked."""
    tenant: str = "default"
    key: str = ""
    delay: float = 0.0
    expects: tuple[str, ...] = ("succeeded",)
    """Outcomes that are right for what was asked, if nobody cancels it."""
    told: str = ""
    """What the caller was told of its task in the end: a run, or how it ended."""
    unheard: str = ""
    """Why a caller that waited was told nothing."""


class Outcome(msgspec.Struct, frozen=True):
    """What is recorded of a task that ended. `run` is the one whose result it is."""

    status: str
    run: str = ""
    worker: str = ""
    error: str = ""
    attempts: int = 0


class Loss(msgspec.Struct, frozen=True):
    """A worker that was given up, at this time, for this reason; `at` is in s by CLOCK_BOOTTIME."""

    worker: str
    at: float
    reason: str
    host: str = ""
    excused: str = ""
    """The fault that explains it, if any."""


class Fence(msgspec.Struct, frozen=True):
    """A number that may only grow, as it was seen once."""

    of: str
    number: int
    at: float


class History:
    """All operations, by number."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def invoke(self, kind: str, **facts: object) -> Operation:
        """Note that something is asked for."""
        operation = Operation(number=len(self.operations), kind=kind, invoked=boottime(), **facts)  # type: ignore[arg-type]
        self.operations.append(operation)
        return operation

    @staticmethod
    def answered(operation: Operation, answer: Answer, error: BaseException | None = None) -> None:
        """Note what became of it."""
        operation.answer, operation.answered = answer, boottime()
        if error is not None:
            operation.error = f"{type(error).__name__}: {error}"

    def named_tasks(self) -> set[str]:
        """Return every task of which a client was told that it was accepted."""
        return {task for operation in self.operations for task in operation.tasks}
