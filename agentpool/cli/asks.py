"""What the asking commands of `agentpool` do, on a client."""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from agentpool.cli import output
from agentpool.client import AgentHandle, Client
from agentpool.client.raw import raw_command
from agentpool.client.requests import TaskOptions
from agentpool.client.tasks import TaskHandle
from agentpool.errors import AgentPoolError, InvalidInput, UnknownAgent
from agentpool.protocol.keys import pool_of
from agentpool.protocol.limits import check_limits
from agentpool.protocol.records import plain
from agentpool.protocol.retrying import RetryPolicy

__all__ = [
    "cancel",
    "letter_ids",
    "limit_tenant",
    "print_result",
    "purge",
    "raw",
    "replay",
    "run",
    "spawn",
    "submit",
    "terminate",
]

AT_ONCE = 50

Row = dict[str, Any]


async def spawn(
    client: Client, pool: str, *, agent_type: str, name: str | None, count: int, **settings: Any
) -> tuple[list[Row], AgentPoolError | None]:
    """Spawn agents all at once; returns those that run, and the error of those that do not."""
    if count < 1:
        raise InvalidInput(f"--count is {count}: it must be 1 or more.", "$.count")
    if name is not None and count > 1:
        raise InvalidInput(f"--id names one agent, but --count is {count}.", "$.id")
    asked = [client.pool(pool).spawn(agent_type, id=name, **settings) for _ in range(count)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    spawned = [await _row(pool, answer) for answer in answers if isinstance(answer, AgentHandle)]
    return spawned, _sum_up(f"{len(spawned)} of {count} agents run", answers)


async def _row(pool: str, agent: AgentHandle) -> Row:
    try:
        record = await agent.info()
    except UnknownAgent:
        return {"agent_id": agent.id, "process_id": "", "pool_name": pool, "status": "terminated"}
    return {field: str(getattr(record, field)) for field in output.SPAWN_COLUMNS}


async def terminate(client: Client, agent_ids: Sequence[str]) -> list[Row]:
    """End agents all at once; a wrong id among them is refused before any is ended."""
    agents = [client.agent(agent_id) for agent_id in agent_ids]
    answers = await asyncio.gather(*(agent.terminate() for agent in agents), return_exceptions=True)
    failed = sum(isinstance(answer, BaseException) for answer in answers)
    if error := _sum_up(f"{len(agents) - failed} of {len(agents)} agents ended", answers):
        raise error
    return [{"agent_id": agent.id, "status": "terminated"} for agent in agents]


def _sum_up(so_far: str, answers: Sequence[object]) -> AgentPoolError | None:
    """Return one error for several answers, or None; anything but our own errors is raised."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if not isinstance(error, AgentPoolError):
            raise error
    if not errors:
        return None
    first = errors[0]
    assert isinstance(first, AgentPoolError)
    if len(answers) > 1:
        first.args = (f"{so_far}. {first}",)
    return first


async def run(
    client: Client,
    pool: str,
    agent_type: str | None,
    agent_id: str | None,
    input: Any,
    *,
    tenant: str | None,
    priority: int | None,
    timeout: float | None,
) -> Any:
    """Run one task by type or on an agent."""
    if agent_id is not None:
        return await client.pool(pool).agent(agent_id).run(input, timeout=timeout)
    assert agent_type is not None
    options: TaskOptions = {"tenant": tenant or "default", "timeout": timeout}
    if priority is not None:
        options["priority"] = priority
    return await client.pool(pool).run(agent_type, input, **options)


async def submit(
    client: Client, pool: str, agent_type: str, input: Any, *, retry_attempts: int | None, wait: bool, **given: Any
) -> tuple[str, Any]:
    """Hand in a task; returns its id and, if it was waited for, its result."""
    options: TaskOptions = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    if retry_attempts is not None:
        options["retry"] = RetryPolicy(attempts=retry_attempts)
    task = await client.pool(pool).submit(agent_type, input, **options)
    return task.id, await task.result() if wait else None


async def cancel(client: Client, task_ids: Sequence[str]) -> tuple[list[Row], AgentPoolError | None]:
    """Cancel tasks all at once; returns what became of each, and the error of those that are not known."""
    tasks = [client.task(task_id) for task_id in task_ids]
    answers = await asyncio.gather(*(task.cancel() for task in tasks), return_exceptions=True)
    rows = [
        {"task_id": task.id, "cancelled": answer}
        for task, answer in zip(tasks, answers, strict=True)
        if isinstance(answer, bool)
    ]
    return rows, _sum_up(f"{len(rows)} of {len(tasks)} tasks are known", answers)


# -- dead letters and tenants -----------------------------------------------------------------------------------


async def letter_ids(client: Client, pool: str, **filters: Any) -> list[str]:
    """Return the ids of the dead letters that fit."""
    return [letter.task_id async for letter in client.pool(pool).dead_letters(**filters)]


async def replay(client: Client, task_ids: Sequence[str]) -> tuple[list[Row], AgentPoolError | None]:
    """Submit dead tasks anew; returns their new ids, and the error of those that could not be."""
    tasks = [client.task(task_id) for task_id in task_ids]
    answers: list[Any] = []
    for start in range(0, len(tasks), AT_ONCE):
        asked = (client.pool(pool_of(task.id)).replay(task.id) for task in tasks[start : start + AT_ONCE])
        answers += await asyncio.gather(*asked, return_exceptions=True)
    rows = [
        {"task_id": task.id, "new_task_id": answer.id}
        for task, answer in zip(tasks, answers, strict=True)
        if isinstance(answer, TaskHandle)
    ]
    return rows, _sum_up(f"{len(rows)} of {len(tasks)} tasks were submitted anew", answers)


async def purge(client: Client, task_ids: Sequence[str]) -> int:
    """Throw dead letters away; returns how many there were."""
    by_pool: dict[str, list[str]] = {}
    for task_id in task_ids:
        by_pool.setdefault(pool_of(client.task(task_id).id), []).append(task_id)
    return sum([await client.pool(pool).purge(ids) for pool, ids in by_pool.items()])


async def limit_tenant(client: Client, pool: str, tenant: str, words: Sequence[str]) -> Row:
    """Set limits from `name=value` words; `name=` takes one back. Returns the tenant as it stands then."""
    limits: dict[str, float | None] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            limits[name] = float(value) if value else None
        except ValueError:
            raise InvalidInput(f"{word}: the value of a limit is a number.", f"$.{name}") from None
    check_limits(limits)  # here, because a word may be anything, and not only what can be the name of an argument
    return {"pool_name": pool, **plain(await client.pool(pool).limit_tenant(tenant, **limits))}


# -- results ----------------------------------------------------------------------------------------------------


def print_result(result: Any, *, as_json: bool) -> None:
    """Print a task's result: as JSON, or for people, text bare and data indented."""
    if as_json:
        output.print_json(result)
    elif isinstance(result, str):
        print(result)
    else:
        print(json.dumps(result, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


async def raw(client: Client, words: Sequence[str], *, as_json: bool) -> None:
    """Send a raw command and print each reply."""
    async for reply in raw_command(client, words):
        if as_json:
            output.print_json(_jsonable(reply))
        else:
            print(output.redis_text(reply), flush=True)


def _jsonable(reply: Any) -> Any:
    match reply:
        case bytes():
            return reply.decode(errors="backslashreplace")
        case list():
            return [_jsonable(item) for item in reply]
        case None | int():
            return reply
        case _:
            return str(reply)
