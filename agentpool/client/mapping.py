"""`pool.map`: many tasks, handed in batch by batch as results are taken."""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from agentpool.client.tasks import TaskHandle
from agentpool.errors import UnknownTask
from agentpool.protocol.tasks import Outcome

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["PARALLEL", "map_tasks"]

PARALLEL = 1000
BATCH_PART = 10
"""The next batch is handed in when this part of all places is free: one by one would cost a round trip each."""

Submit = Callable[[list[Any]], Awaitable[list[TaskHandle]]]


class _Awaited:
    """A task that was handed in. It is told its outcome as a future is, but notes that at once: a future's callback
    would cost a turn of the loop for each task.
    """

    __slots__ = ("_answer", "_note", "handle")

    def __init__(self, handle: TaskHandle, note: Callable[["_Awaited"], None]) -> None:
        self.handle, self._note = handle, note
        self._answer: Outcome | BaseException | None = None

    def done(self) -> bool:
        return self._answer is not None

    def set_result(self, outcome: Outcome) -> None:
        self._answer = outcome
        self._note(self)

    def set_exception(self, error: BaseException) -> None:
        self._answer = error
        self._note(self)

    def exception(self) -> BaseException | None:
        return None if isinstance(self._answer, Outcome) else self._answer

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._answer = self._answer or asyncio.CancelledError()

    def result(self) -> Any:
        """Return the task's result, or raise why there is none."""
        if isinstance(self._answer, Outcome):
            return self.handle.read(self._answer)
        assert self._answer is not None
        raise self._answer


async def map_tasks(
    client: "Client", submit: Submit, inputs: Iterable[Any] | AsyncIterable[Any], parallel: int, *, ordered: bool
) -> AsyncGenerator[Any, None]:
    """Yield results; whatever is unfinished when this ends is cancelled."""
    source, is_over = _batches(inputs), False
    waiting: set[_Awaited] = set()
    order, came = deque[_Awaited](), asyncio.Event()
    """Those to yield next: all in order, or else those that are done."""

    def note(awaited: _Awaited) -> None:
        if not ordered:
            order.append(awaited)
        came.set()

    try:
        while True:
            if not is_over and parallel - len(waiting) >= max(1, parallel // BATCH_PART):
                batch = await source(parallel - len(waiting))
                is_over = len(batch) < parallel - len(waiting)
                new = [_Awaited(handle, note) for handle in await submit(batch)]
                waiting.update(new)
                if ordered:
                    order.extend(new)
                for awaited in new:
                    client.backend.tell(awaited.handle.id, awaited)
            if not waiting:
                return
            while not (order and order[0].done()):
                came.clear()
                await came.wait()
            while order and order[0].done():
                awaited = order.popleft()
                waiting.remove(awaited)
                yield awaited.result()
                if not is_over and parallel - len(waiting) >= max(1, parallel // BATCH_PART):
                    break  # the next batch is due
    finally:
        _give_up(waiting, client)


def _give_up(waiting: set[_Awaited], client: "Client") -> None:
    left = [awaited.handle for awaited in waiting if not awaited.done()]
    for awaited in waiting:
        awaited.give_up()

    async def cancel_all() -> None:
        for handle in left:
            with contextlib.suppress(UnknownTask):
                await handle.cancel()

    if left:
        client.cleanup.start(cancel_all)


def _batches(inputs: Iterable[Any] | AsyncIterable[Any]) -> Callable[[int], Awaitable[list[Any]]]:
    """Return what gives so many of the next inputs, or fewer at their end."""
    if isinstance(inputs, AsyncIterable):
        return partial(_take, aiter(inputs))
    source = iter(inputs)

    async def take(count: int) -> list[Any]:
        return list(itertools.islice(source, count))

    return take


async def _take(source: AsyncIterator[Any], count: int) -> list[Any]:
    batch: list[Any] = []
    while len(batch) < count:
        try:
            batch.append(await anext(source))
        except StopAsyncIteration:
            break
    return batch
