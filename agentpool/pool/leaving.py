"""Agents that clean up. Each keeps its place until it has stopped or was given up, unless its successor has that."""

import asyncio
from collections.abc import Callable
from functools import partial

from agentpool.pool.instance import Instance

__all__ = ["Leaving"]


class Leaving:
    """`tasks` end when their agents have; `places` of the pool are still taken by some of these."""

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[None], Instance] = {}
        self.places = 0
        self._deaf: list[Instance] = []

    def see_off(self, instance: Instance, then: Callable[[], None] | None = None) -> "asyncio.Task[None]":
        """Let an agent clean up, in the background. With `then`, it keeps its place until that is called."""
        task = asyncio.create_task(instance.close(), name=f"see off {instance.id}")
        self.tasks[task] = instance
        self.places += then is not None
        task.add_done_callback(partial(self._left, then))
        return task

    def calls_that_ignore_their_end(self) -> tuple[str, ...]:
        """Return the labels of calls of these agents, and of those gone, that were given up and still run."""
        left_behind = {*self._deaf, *self.tasks.values()}
        return tuple(sorted(label for it in left_behind for label in it.calls_that_ignore_their_end()))

    def _left(self, then: Callable[[], None] | None, task: "asyncio.Task[None]") -> None:
        instance = self.tasks.pop(task)
        self._deaf = [known for known in (*self._deaf, instance) if known.calls_that_ignore_their_end()]
        if then:
            self.places -= 1
            then()
