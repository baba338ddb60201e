"""`pool.map`: many tasks, handed in batch by batch as results are taken."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from agentpool.client.cleanup import Cleanup
from agentpool.client.tasks import TaskHandle
from agentpool.errors import UnknownTask

__all__ = ["PARALLEL", "map_tasks"]

PARALLEL = 1000
BATCH_PART = 10
"""The next batch is handed in when this part of all places is free: one by one would cost a round trip each."""

Submit = Callable[[list[Any]], Awaitable[list[TaskHandle]]]


async def map_tasks(
    submit: Submit, inputs: Iterable[Any] | AsyncIterable[Any], parallel: int, *, ordered: bool, cleanup: Cleanup
) -> AsyncGenerator[Any, None]:
    """Yield results; whatever is unfinished when this ends is cancelled."""
    source, is_over = _each(inputs), False
    waiting: dict[asyncio.Task[Any], TaskHandle] = {}
    try:
        while True:
            if not is_over and parallel - len(waiting) >= max(1, parallel // BATCH_PART):
                batch = await _take(source, parallel - len(waiting))
                is_over = len(batch) < parallel - len(waiting)
                for handle in await submit(batch):
                    waiting[asyncio.create_task(handle.result())] = handle
            if not waiting:
                return
            first = next(iter(waiting))
            done, _ = await asyncio.wait([first] if ordered else waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                result = task.result()
                del waiting[task]
                yield result
    finally:
        _give_up(waiting, cleanup)


def _give_up(waiting: dict[asyncio.Task[Any], TaskHandle], cleanup: Cleanup) -> None:
    left = [handle for task, handle in waiting.items() if not task.done()]
    for task in waiting:
        task.cancel()
        task.add_done_callback(_hear)

    async def cancel_all() -> None:
        for handle in left:
            with contextlib.suppress(UnknownTask):
                await handle.cancel()

    if left:
        cleanup.start(cancel_all)


def _hear(task: asyncio.Task[Any]) -> None:
    """Take note of an error, so that nobody complains that it was not."""
    if not task.cancelled():
        task.exception()


async def _each(inputs: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(inputs, AsyncIterable):
        async for input in inputs:
            yield input
    else:
        for input in inputs:
            yield input


async def _take(source: AsyncIterator[Any], count: int) -> list[Any]:
    batch: list[Any] = []
    while len(batch) < count:
        try:
            batch.append(await anext(source))
        except StopAsyncIteration:
            break
    return batch
