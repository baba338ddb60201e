"""`pool.map`: many tasks, handed in batch by batch as results are taken."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from agentpool.client.cleanup import Cleanup
from agentpool.client.tasks import TaskHandle
from agentpool.errors import UnknownTask
from agentpool.protocol.records import Outcome

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
    waiting: dict[asyncio.Future[Outcome], TaskHandle] = {}
    done, came = deque[asyncio.Future[Outcome]](), asyncio.Event()

    def note(future: "asyncio.Future[Outcome]") -> None:
        done.append(future)
        came.set()

    try:
        while True:
            if not is_over and parallel - len(waiting) >= max(1, parallel // BATCH_PART):
                batch = await _take(source, parallel - len(waiting))
                is_over = len(batch) < parallel - len(waiting)
                for handle in await submit(batch):
                    future = handle.watch()
                    waiting[future] = handle
                    if not ordered:
                        future.add_done_callback(note)
            if not waiting:
                return
            if ordered:
                first = next(iter(waiting))
                await asyncio.wait([first])
                done.append(first)
            elif not done:
                came.clear()
                await came.wait()
            while done:
                future = done.popleft()
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
