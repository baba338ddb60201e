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
from agentpool.errors import AgentPoolError, InvalidInput, UnknownAgent

__all__ = ["print_result", "raw", "run", "spawn", "terminate"]

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
    more: TaskOptions = {} if priority is None else {"priority": priority}
    return await client.pool(pool).run(agent_type, input, tenant=tenant or "default", timeout=timeout, **more)


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
