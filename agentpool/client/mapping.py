"""`pool.map`: many tasks, handed in batch by batch as results are taken."""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from agentpool.client.cleanup import Cleanup
from agentpool.client.tasks import TaskHandle
from agentpool.errors import UnknownTask
from agentpool.protocol.tasks import Outcome

__all__ = ["PARALLEL", "map_tasks"]

PARALLEL = 1000
BATCH_PART = 10
"""The next batch is handed in when this part of all places is free: one by one would cost a round trip each."""

Submit = Callable[[list[Any]], Awaitable[list[TaskHandle]]]


async def map_tasks(
    submit: Submit, inputs: Iterable[Any] | AsyncIterable[Any], parallel: int, *, ordered: bool, cleanup: Cleanup
) -> AsyncGenerator[Any, None]:
    """Yield results; whatever is unfinished when this ends is cancelled."""
    source, is_over = _batches(inputs), False
    waiting: dict[asyncio.Future[Outcome], TaskHandle] = {}
    order, came = deque[asyncio.Future[Outcome]](), asyncio.Event()
    """Those to yield next: all in order, or else those that are done."""

    def note(future: "asyncio.Future[Outcome]") -> None:
        order.append(future)
        came.set()

    try:
        while True:
            if not is_over and parallel - len(waiting) >= max(1, parallel // BATCH_PART):
                batch = await source(parallel - len(waiting))
                is_over = len(batch) < parallel - len(waiting)
                for handle in await submit(batch):
                    future = handle.watch()
                    waiting[future] = handle
                    if ordered:
                        order.append(future)
                    else:
                        future.add_done_callback(note)
            if not waiting:
                return
            if ordered:
                await asyncio.wait([order[0]])
            elif not order:
                came.clear()
                await came.wait()
            while order and order[0].done():
                future = order.popleft()
                yield waiting.pop(future).read(future.result())
                if not is_over and parallel - len(waiting) >= max(1, parallel // BATCH_PART):
                    break  # the next batch is due
    finally:
        _give_up(waiting, cleanup)


def _give_up(waiting: "dict[asyncio.Future[Outcome], TaskHandle]", cleanup: Cleanup) -> None:
    left = [handle for future, handle in waiting.items() if not future.done()]
    for future in waiting:
        future.cancel()

    async def cancel_all() -> None:
        for handle in left:
            with contextlib.suppress(UnknownTask):
                await handle.cancel()

    if left:
        cleanup.start(cancel_all)


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
