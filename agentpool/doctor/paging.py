"""Reading very many things in pages, beside one another."""

from collections.abc import AsyncGenerator, Callable, Iterable
from itertools import islice
from typing import Any

from agentpool.store import Store

__all__ = ["PAGE", "in_pages"]

PAGE = 500


async def in_pages(
    store: Store, ids: Iterable[str], ask: Callable[[Any, str], object]
) -> AsyncGenerator[tuple[str, list[Any]], None]:
    """Yield each id with the answers to what `ask(pipe, id)` puts into a pipeline, which are of one moment."""

    async def read() -> list[Any]:
        async with store.connection.redis.pipeline(transaction=True) as pipe:
            for id in page:
                ask(pipe, id)
            result: list[Any] = await pipe.execute()
            return result

    rest = iter(ids)
    while page := list(islice(rest, PAGE)):
        answers = await store.connection.repeat(read)
        each = len(answers) // len(page)
        for place, id in enumerate(page):
            yield id, answers[place * each : (place + 1) * each]
