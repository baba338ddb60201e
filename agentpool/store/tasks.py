"""Tasks in Redis: submitted, claimed, completed, cancelled, read."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from agentpool.errors import UnknownTask
from agentpool.protocol.keys import pool_of
from agentpool.protocol.records import (
    ClaimedTask,
    Outcome,
    TaskEnvelope,
    TaskHeader,
    decode_header,
    decode_task,
    encode_task,
)
from agentpool.protocol.refusals import refusal
from agentpool.protocol.states import TaskStatus
from agentpool.store.connection import Connection

__all__ = ["Claim", "Tasks"]

PAGE = 500
TASKS_PER_CALL = 100
BYTES_PER_CALL = 262_144
"""Of what is submitted by one call, unless it is a single task."""


class Claim(msgspec.Struct, frozen=True):
    """What a claim brought; `lanes` still hold tasks by type."""

    tasks: tuple[ClaimedTask, ...]
    lanes: int


class Tasks:
    """Doors to tasks. A task's id is `<pool>/<id>`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def submit(
        self,
        task_id: str,
        header: TaskHeader,
        envelope: TaskEnvelope,
        *,
        later_us: int = 0,
        timeout: float | None = None,
    ) -> None:
        """Accept a task: when this returns, the server has it. The channel to reply to is without its prefix.

        `later_us` puts a task by type behind those of its tenant that come within that time.
        """
        await self.submit_many([(task_id, envelope)], header, later_us=later_us, timeout=timeout)

    async def submit_many(
        self,
        tasks: Sequence[tuple[str, TaskEnvelope]],
        header: TaskHeader,
        *,
        later_us: int = 0,
        timeout: float | None = None,
    ) -> None:
        """Accept tasks of one pool with one header, in order, in as few calls as the bounds of a script allow.

        Each call is all or nothing: when one is refused, those before it were accepted.
        """
        for chunk in _chunks([(task_id, encode_task(header, envelope)) for task_id, envelope in tasks]):
            pool = pool_of(chunk[0][0])
            words = [word for pair in chunk for word in pair]
            answer = await self._connection.call(
                "submit_tasks", pool, header.agent_name, header.agent_type, header.tenant, later_us, *words,
                timeout=timeout,
            )  # fmt: skip
            if answer[0] != "ok":
                target = header.agent_name or header.agent_type
                what = {"full": f"tasks for {target}"}.get(answer[0], target)
                raise refusal(pool, what, answer)

    async def claim(self, pool: str, worker: str, number: int, *, by_type: int, names: Sequence[str]) -> Claim | None:
        """Take tasks for idle agents and free slots; None when the worker was given up."""
        answer = await self._connection.call("claim_tasks", pool, worker, number, by_type, *names)
        if answer[0] == "gone":
            return None
        _, lanes, *rest = answer
        tasks = (self._claimed(id, record) for id, record in zip(rest[::2], rest[1::2], strict=True))
        return Claim(tuple(task for task in tasks if task), int(lanes))

    @staticmethod
    def _claimed(id: str, record: str | None) -> ClaimedTask | None:
        try:
            decoded = decode_task(record) if record else None
        except msgspec.DecodeError:
            return ClaimedTask(id, decode_header(record or ""), None)
        return ClaimedTask(id, *decoded) if isinstance(decoded, tuple) else None

    async def complete(self, worker: str, task_id: str, agent_name: str, outcome: Outcome) -> tuple[int, int] | None:
        """Record an outcome; returns (tasks in the agent's mailbox, lanes with tasks), or None for a late holder."""
        answer = await self._connection.call(
            "complete_task", pool_of(task_id), worker, task_id, agent_name, msgspec.json.encode(outcome)
        )
        return (int(answer[1]), int(answer[2])) if answer[0] == "ok" else None

    async def cancel(self, task_id: str) -> str:
        """Cancel a task; returns cancelled, asked (its worker was told) or finished. Raises `UnknownTask`."""
        answer = await self._connection.call("cancel_task", pool_of(task_id), task_id)
        if answer[0] == "unknown":
            raise refusal(pool_of(task_id), task_id, ["unknown_task"])
        return str(answer[0])

    async def read(self, task_id: str) -> Outcome | None:
        """Return the outcome, or None while there is none; raises `UnknownTask` when nothing is kept of it."""
        key = self._keys.task(task_id)
        raw = await self._connection.repeat(lambda: self._connection.redis.get(key))
        if raw is None:
            raise UnknownTask(task_id, hint=" Outcomes are kept for the pool's result_ttl.")
        decoded = decode_task(raw)
        return decoded if isinstance(decoded, Outcome) else None

    async def settled(self, task_ids: Sequence[str]) -> list[str]:
        """Return those that are no longer unfinished: with an outcome, or forgotten. Costs one byte each."""
        settled: list[str] = []
        for start in range(0, len(task_ids), PAGE):
            page = task_ids[start : start + PAGE]
            firsts = await self._connection.repeat(partial(self._first_bytes, page))
            settled += [id for id, first in zip(page, firsts, strict=True) if first != "t"]
        return settled

    async def _first_bytes(self, task_ids: Sequence[str]) -> list[str]:
        async with self._connection.redis.pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.getrange(self._keys.task(task_id), 0, 0)
            result: list[str] = await pipe.execute()
            return result

    async def info(self, task_id: str) -> dict[str, Any]:
        """Return the task's state as plain data: status, and while it runs its worker, afterwards its outcome."""
        outcome = await self.read(task_id)
        if outcome:
            return {"task_id": task_id, "result": None, **msgspec.json.decode(msgspec.json.encode(outcome))}
        leases = self._keys.leases(pool_of(task_id))
        worker = await self._connection.repeat(lambda: self._connection.redis.hget(leases, task_id))
        status = TaskStatus.LEASED if worker else TaskStatus.QUEUED
        return {"task_id": task_id, "status": str(status), "process_id": worker or ""}


def _chunks(records: Sequence[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Split records so that no script has too many, nor too much to write at once."""
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for task_id, record in records:
        if chunk and (len(chunk) == TASKS_PER_CALL or size + len(record) > BYTES_PER_CALL):
            yield chunk
            chunk, size = [], 0
        chunk.append((task_id, record))
        size += len(record)
    if chunk:
        yield chunk
