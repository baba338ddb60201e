"""Dead letters in Redis: tasks that are not tried again, listed, shown, replayed and thrown away."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

import msgspec

from agentpool.errors import UnknownTask
from agentpool.protocol.codec import new_id
from agentpool.protocol.keys import pool_of
from agentpool.protocol.refusals import refusal
from agentpool.protocol.tasks import DeadLetter
from agentpool.store.connection import Connection

__all__ = ["Letters"]

PAGE = 100


class Letters:
    """Doors to dead letters; each is known by the id of its task."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def all(
        self, pool: str, *, older_than_ms: int = 0, agent_type: str = "", tenant: str = ""
    ) -> AsyncGenerator[DeadLetter, None]:
        """Yield the letters that fit, oldest first; those that come or go meanwhile may be missed."""
        redis, keys = self._connection.redis, self._keys
        latest: float | str = "+inf"
        if older_than_ms:
            latest = await self._connection.now_ms() - older_than_ms
        seen, after = set[str](), "-inf"
        while True:
            read = partial(
                redis.zrangebyscore, keys.dead(pool), after, latest, start=0, num=PAGE + len(seen), withscores=True
            )
            rows = [(id, at) for id, at in await self._connection.repeat(read) if id not in seen]
            if not rows:
                return
            for letter in await self._read(pool, [id for id, _ in rows]):
                if (not agent_type or letter.agent_type == agent_type) and (not tenant or letter.tenant == tenant):
                    yield letter
            # Those of the last millisecond come again with the next page.
            last = rows[-1][1]
            seen = {id for id, at in rows if at == last} | (seen if after == last else set())
            after = last

    async def get(self, task_id: str) -> DeadLetter:
        """Return a letter; raises `UnknownTask`."""
        letters = await self._read(pool_of(task_id), [task_id])
        if not letters:
            raise UnknownTask(task_id, hint=" It is no dead letter. List them: agentpool dead list")
        return letters[0]

    async def replay(self, task_id: str, again: str = "") -> str:
        """Submit a dead task anew; returns the id of the new one. Raises `UnknownTask`, `UnknownAgent`."""
        again = again or f"{pool_of(task_id)}/{new_id()}"
        answer = await self._connection.call("replay_task", pool_of(task_id), task_id, again)
        if answer[0] == "unknown_agent":
            letter = await self.get(task_id)
            raise refusal(pool_of(task_id), letter.agent_name, answer)
        if answer[0] != "ok":
            raise UnknownTask(task_id, hint=" It is no dead letter. List them: agentpool dead list")
        return again

    async def purge(self, task_ids: Sequence[str]) -> int:
        """Throw letters of one pool away; returns how many there were."""
        gone = 0
        for start in range(0, len(task_ids), PAGE):
            page = task_ids[start : start + PAGE]
            answer = await self._connection.call("purge_tasks", pool_of(page[0]), *page)
            gone += int(answer[1])
        return gone

    async def _read(self, pool: str, task_ids: Sequence[str]) -> list[DeadLetter]:
        async def read() -> list[Any]:
            async with self._connection.redis.pipeline(transaction=False) as pipe:
                for task_id in task_ids:
                    pipe.hgetall(self._keys.letter(pool, task_id))
                result: list[Any] = await pipe.execute()
                return result

        rows = await self._connection.repeat(read)
        return [_letter(id, fields) for id, fields in zip(task_ids, rows, strict=True) if fields]


def _letter(task_id: str, fields: dict[str, str]) -> DeadLetter:
    errors = {name[6:]: msgspec.Raw(text.encode()) for name, text in fields.items() if name.startswith("error:")}
    words = {name: "" if fields.get(name, "-") == "-" else fields[name] for name in ("agent_type", "agent_name")}
    _, _, body = fields.get("record", "").partition("\n")
    try:
        input = msgspec.json.decode(body, type=dict[str, msgspec.Raw])["input"]
    except (msgspec.DecodeError, KeyError):
        input = msgspec.Raw(b"null")
    return DeadLetter(
        task_id=task_id,
        kind=fields.get("kind", ""),
        tenant=fields.get("tenant", ""),
        died_at=int(fields.get("died_at", 0)),
        attempts=int(fields.get("attempts", 0)),
        crashes=int(fields.get("crashes", 0)),
        starts=int(fields.get("starts", 0)),
        outcome=msgspec.Raw(fields.get("outcome", "null").encode()),
        input=input,
        errors=errors,
        **words,
    )
