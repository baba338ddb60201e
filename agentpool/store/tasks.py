"""Tasks in Redis: submitted, exchanged with workers, cancelled, followed, read."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from agentpool.errors import AgentPoolError, UnknownTask
from agentpool.protocol.codec import encode_json
from agentpool.protocol.keys import pool_of
from agentpool.protocol.refusals import refusal
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import (
    ClaimedTask,
    Outcome,
    TaskEnvelope,
    TaskHeader,
    decode_claimed,
    decode_task,
    encode_header,
)
from agentpool.store.connection import Connection

__all__ = ["EndedTask", "Exchange", "SubmitOptions", "TaskGroup", "Tasks", "claimed_tasks"]

PAGE = 500
TASKS_PER_CALL = 100
GROUPS_PER_CALL = 16
BYTES_PER_CALL = 262_144
"""Of what is submitted by one call, unless it is a single task."""
OUTCOMES_PER_CALL = 100
TIMERS_PER_CALL = 100
RESTORED_PER_CALL = 50
TRAIL_WAITS_MS = 500


class SubmitOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked beside the tasks themselves; times are in ms."""

    delay: int = 0
    """Until the tasks may begin."""
    expires: int = 0
    """In which they must have begun."""
    batch: bool = False
    """They wait behind all others, at most for the pool's `batch_max_wait`."""
    key: str = ""
    """Digest of the idempotency key; only with a single task."""
    input: str = ""
    """Digest of what the key stands for."""
    parent: str = ""
    """The task that waits for these."""
    sticky: str = ""
    """`<tenant>` or `<tenant>/<project>` whose worker is to be preferred."""
    limits: str = ""
    """`reject`: refuse at a limit instead of waiting; `total`: and count all that the tenant has against its total."""

    def words(self) -> str:
        """Return them as the script takes them."""
        if self == NO_OPTIONS:
            return ""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name))}
        return " ".join(name if value is True else f"{name}={value}" for name, value in given.items())


NO_OPTIONS = SubmitOptions()


class TaskGroup(msgspec.Struct, frozen=True):
    """Tasks that share everything but ids and envelopes."""

    header: TaskHeader
    options: SubmitOptions
    tasks: Sequence[tuple[str, TaskEnvelope]]


class EndedTask(msgspec.Struct, frozen=True, gc=False):
    """What a worker says of a task that it had: `verdict` is done, dead, unstarted, retry or back."""

    id: str
    agent_name: str
    verdict: str
    outcome: bytes
    """The outcome of this attempt, or for a task that goes back what went wrong, as JSON."""
    delay_ms: int = 0
    run_ms: float = 0.0
    tokens: int = 0
    audit: bytes = b""


class Exchange(msgspec.Struct, frozen=True):
    """The answer to an exchange."""

    tasks: tuple[ClaimedTask, ...]
    turns: int
    """Tenants whose tasks by type may still be taken."""
    stale: tuple[str, ...]
    """Ids of what ended too late: another holds the task, or it has its outcome."""
    mail: dict[str, int]
    """Tasks that wait in the mailbox of each agent whose task ended."""


class Tasks:
    """Doors to tasks. A task's id is `<pool>/<id>`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    # -- clients ------------------------------------------------------------------------------------------------

    async def submit(
        self,
        task_id: str,
        header: TaskHeader,
        envelope: TaskEnvelope,
        options: SubmitOptions = NO_OPTIONS,
        *,
        timeout: float | None = None,
    ) -> str:
        """Accept a task: when this returns, the server has it. The channel to reply to is without its prefix.

        Returns its id, or that of the task which has the key already.
        """
        return await self.submit_many([(task_id, envelope)], header, options, timeout=timeout) or task_id

    async def submit_many(
        self,
        tasks: Sequence[tuple[str, TaskEnvelope]],
        header: TaskHeader,
        options: SubmitOptions = NO_OPTIONS,
        *,
        timeout: float | None = None,
    ) -> str:
        """Accept tasks of one pool with one header, in order, in as few calls as the bounds of a script allow.

        Each call is all or nothing: when one is refused, those before it were accepted. Returns the id of the task
        that has the key of a single one already, else ''.
        """
        line, words = encode_header(header), options.words()
        for chunk in _chunks([(task_id, line + encode_json(envelope)) for task_id, envelope in tasks]):
            (answer,) = await self._submit(pool_of(chunk[0]), [(header, words, chunk)], timeout)
            if isinstance(answer, AgentPoolError):
                raise answer
            if answer:
                return answer
        return ""

    async def submit_groups(
        self, groups: Sequence[TaskGroup], *, timeout: float | None = None
    ) -> list[str | AgentPoolError]:
        """Accept tasks of one pool by one call, each group all or nothing; at most `GROUPS_PER_CALL` groups of
        `TASKS_PER_CALL` tasks together.

        Returns for each group '', the id of the task that has its key already, or why it was refused.
        """
        prepared = []
        for group in groups:
            line = encode_header(group.header)
            records: list[str | bytes] = []
            for task_id, envelope in group.tasks:
                records += (task_id, line + encode_json(envelope))
            prepared.append((group.header, group.options.words(), records))
        return await self._submit(pool_of(groups[0].tasks[0][0]), prepared, timeout)

    async def _submit(
        self, pool: str, groups: Sequence[tuple[TaskHeader, str, Sequence[Any]]], timeout: float | None
    ) -> list[str | AgentPoolError]:
        """Submit groups, each with its options and the ids and records of its tasks in turn."""
        words: list[Any] = []
        for header, options, records in groups:
            words += (
                header.agent_name, header.agent_type, header.tenant, header.lane, header.later_us, options,
                len(records) // 2, *records,
            )  # fmt: skip
        answers = await self._connection.call("submit_tasks", pool, *words, timeout=timeout)
        return [_accepted(pool, header, answer) for (header, _, _), answer in zip(groups, answers, strict=True)]

    async def cancel(self, task_id: str) -> str:
        """Cancel a task; returns cancelled, asked (its worker was told) or finished. Raises `UnknownTask`."""
        return await self._cancel(task_id, "cancel")

    async def withdraw(self, task_id: str) -> str:
        """Cancel a task because who asked for it waits no more; returns what `cancel` does, or shared: it goes on,
        since another asked for it with its key. If not, its key means nothing any more. Raises `UnknownTask`.
        """
        return await self._cancel(task_id, "withdraw")

    async def _cancel(self, task_id: str, how: str) -> str:
        answer = await self._connection.call("cancel_task", pool_of(task_id), task_id, how)
        if answer[0] == "unknown":
            raise refusal(pool_of(task_id), task_id, ["unknown_task"])
        return str(answer[0])

    async def read(self, task_id: str) -> Outcome | None:
        """Return the outcome, or None while there is none; raises `UnknownTask` when nothing is kept of it."""
        raw = await self._connection.ask("GET", self._keys.task(task_id))
        if raw is None:
            raise _forgotten(task_id)
        decoded = decode_task(raw)
        return decoded if isinstance(decoded, Outcome) else None

    async def outcomes(self, task_ids: Sequence[str]) -> dict[str, Outcome | UnknownTask]:
        """Return the outcomes of those that have one, and an error for those of which nothing is kept."""
        found: dict[str, Outcome | UnknownTask] = {}
        for start in range(0, len(task_ids), OUTCOMES_PER_CALL):
            page = task_ids[start : start + OUTCOMES_PER_CALL]
            keys = [self._keys.task(task_id) for task_id in page]
            rows = await self._connection.ask("MGET", *keys)
            for task_id, raw in zip(page, rows, strict=True):
                decoded = None if raw is None else decode_task(raw)
                if isinstance(decoded, Outcome):
                    found[task_id] = decoded
                elif raw is None:
                    found[task_id] = _forgotten(task_id)
        return found

    async def settled(self, task_ids: Sequence[str]) -> list[str]:
        """Return those that are no longer unfinished: with an outcome, or forgotten. Costs one byte each."""
        settled: list[str] = []
        for start in range(0, len(task_ids), PAGE):
            page = task_ids[start : start + PAGE]
            firsts = await self._connection.ask_all([("GETRANGE", self._keys.task(id), 0, 0) for id in page])
            settled += [id for id, first in zip(page, firsts, strict=True) if first != "t"]
        return settled

    async def info(self, task_id: str) -> dict[str, Any]:
        """Return the task's state as plain data: status and attempts, and while it runs its worker, afterwards its
        outcome.
        """
        outcome = await self.read(task_id)
        if outcome:
            return {"task_id": task_id, "result": None, "attempts": 1, **msgspec.json.decode(encode_json(outcome))}
        keys, redis, pool = self._keys, self._connection.redis, pool_of(task_id)

        async def read() -> list[Any]:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.hget(keys.leases(pool), task_id)
                pipe.hget(keys.attempts(pool), task_id)
                pipe.zscore(keys.due(pool), f"start {task_id}")
                result: list[Any] = await pipe.execute()
                return result

        lease, tried, delayed = await self._connection.repeat(read)
        status = TaskStatus.LEASED if lease else TaskStatus.QUEUED if delayed is None else TaskStatus.DELAYED
        attempts, crashes = (tried or "0 0").split(" ")[:2]
        return {
            "task_id": task_id,
            "status": str(status),
            "process_id": (lease or "").partition(" ")[0],
            "attempts": int(attempts) + bool(lease),
            "crashes": int(crashes),
        }

    # -- following ----------------------------------------------------------------------------------------------

    async def follow(self, task_id: str) -> tuple[str, str]:
        """Have the task's changes written down from now on; returns its state (or `finished`) and its worker."""
        answer = await self._connection.call("follow_task", pool_of(task_id), task_id)
        if answer[0] == "unknown":
            raise refusal(pool_of(task_id), task_id, ["unknown_task"])
        return str(answer[1]), str(answer[2])

    async def trail(self, task_id: str) -> AsyncGenerator[dict[str, str] | None, None]:
        """Yield what is written of a task, first what was written already; None when nothing came for a while."""
        key, last = self._keys.trail(pool_of(task_id), task_id), "0"
        redis = self._connection.dedicated()
        try:
            while True:
                read = partial(redis.xread, {key: last}, count=100, block=TRAIL_WAITS_MS)
                answer = await self._connection.repeat(read)
                for _, entries in answer or ():
                    for last, fields in entries:  # noqa: B007 (the next read begins after it)
                        yield fields
                if not answer:
                    yield None
        finally:
            await redis.aclose()

    # -- workers ------------------------------------------------------------------------------------------------

    async def exchange(
        self,
        pool: str,
        worker: str,
        number: int,
        *,
        room: int,
        prefetch: int = 0,
        ended: Sequence[EndedTask] = (),
        names: Sequence[str] = (),
        repeats: bool = True,
    ) -> Exchange | None:
        """Hand in what ended, and take tasks for idle agents and free slots; None when the worker was given up.

        Beside names of agents there may be ids of tasks that it has without knowing them.
        """
        handed: list[Any] = []
        if ended:
            handed += [task.id for task in ended]
            handed += [_words(task) for task in ended]
            handed += [task.outcome for task in ended]
            lines = [task.audit for task in ended]
            handed.append(b"\n".join(lines) if any(lines) else b"")
        answer = await self._connection.call(
            "exchange_tasks", pool, worker, number, room, prefetch, len(ended), *handed, *names, repeats=repeats
        )
        if answer[0] == "gone":
            return None
        _, turns, stale, mail, *rest = answer
        tasks = claimed_tasks(rest)
        waiting = {name: int(count) for name, count in zip(mail[::2], mail[1::2], strict=True)}
        return Exchange(tasks, int(turns), tuple(stale), waiting)

    async def restore(self, pool: str, worker: str, tasks: Mapping[str, bytes]) -> None:
        """After the server started anew, tell again which tasks a worker has, by id with their records as they were
        submitted, or b'' for those that it has not although it should.
        """
        items = list(tasks.items())
        for start in range(0, len(items), RESTORED_PER_CALL):
            words = [word for item in items[start : start + RESTORED_PER_CALL] for word in item]
            await self._connection.call("restore_tasks", pool, worker, *words)

    async def report(self, pool: str, worker: str, reports: Sequence[tuple[str, bytes]]) -> None:
        """Write down what running tasks report, as JSON; at most 50."""
        await self._connection.call("report_progress", pool, worker, *(word for pair in reports for word in pair))

    # -- timers -------------------------------------------------------------------------------------------------

    async def fire_timers(self, pool: str) -> int:
        """Do everything that is due; returns the ms until the next timer, or -1 when none is set."""
        while True:
            _, fired, next_due_ms = await self._connection.call("fire_timers", pool, TIMERS_PER_CALL)
            if int(fired) < TIMERS_PER_CALL:
                return int(next_due_ms)


def _accepted(pool: str, header: TaskHeader, answer: Sequence[Any]) -> str | AgentPoolError:
    """Read what became of a group: '', the id of the task that has its key, or why it was refused."""
    word = answer[0]
    if word == "ok":
        return ""
    if word == "known":
        return str(answer[1])
    target = header.agent_name or header.agent_type
    what = {"full": f"tasks for {target}", "limited": f'tenant "{header.tenant}"'}.get(word, target)
    if word == "full" and not header.agent_name:
        what = f'tasks of tenant "{header.tenant}"'
    return refusal(pool, what, list(answer))


def _forgotten(task_id: str) -> UnknownTask:
    return UnknownTask(task_id, hint=" Outcomes are kept for the pool's result_ttl.")


def _words(ended: EndedTask) -> str | bytes:
    """Return what the script reads of a task that ended; of a task by type that is done, only how long it took."""
    if ended.verdict == "done" and not (ended.agent_name or ended.tokens):
        return encode_json(ended.run_ms)  # in ms with 3 digits behind the point; a format would take longer
    name = ended.agent_name or "-"
    return f"{name} {ended.verdict} {ended.delay_ms} {ended.run_ms:.3f} {ended.tokens}"


def claimed_tasks(words: Sequence[str]) -> tuple[ClaimedTask, ...]:
    """Read tasks as scripts tell of them: id, record and words of each."""
    return tuple(
        [
            decode_claimed(id, record, *map(int, numbers.split(" "))) if numbers else decode_claimed(id, record)
            for id, record, numbers in zip(words[::3], words[1::3], words[2::3], strict=True)
        ]
    )


def _chunks(records: Sequence[tuple[str, bytes]]) -> Iterator[list[Any]]:
    """Split records so that no script has too many, nor too much to write at once: ids and records in turn."""
    chunk: list[Any] = []
    size = 0
    for task_id, record in records:
        if chunk and (len(chunk) == 2 * TASKS_PER_CALL or size + len(record) > BYTES_PER_CALL):
            yield chunk
            chunk, size = [], 0
        chunk.append(task_id)
        chunk.append(record)
        size += len(record)
    if chunk:
        yield chunk
