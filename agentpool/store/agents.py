"""Pinned agents in Redis: placed, confirmed, failed, moved, ended, read."""

from collections.abc import Sequence
from typing import Any

from agentpool.errors import UnknownAgent
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import AgentRecord, decode_hash, decode_hashes
from agentpool.protocol.refusals import refusal
from agentpool.store.connection import Connection

__all__ = ["Agents"]

PAGE = 500


class Agents:
    """Doors to agents. Names are without the pool unless they are called ids."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def place(
        self,
        pool: str,
        name: str,
        agent_type: str,
        *,
        tenant: str,
        project: str,
        max_idle_ms: int,
        heartbeat_ms: int,
        reply_to: str,
        operation: str,
        timeout: float | None = None,
    ) -> str | None:
        """Register an agent and return the worker it goes to, or None when it waits for room."""
        answer = await self._connection.call(
            "place_agent",
            pool,
            name,
            agent_type,
            tenant,
            project,
            max_idle_ms,
            heartbeat_ms,
            reply_to,
            operation,
            timeout=timeout,
        )
        match answer:
            case ["placed", worker]:
                return str(worker)
            case ["pending"]:
                return None
            case _:
                what = {"unknown_type": agent_type, "full": "waiting agents"}.get(answer[0], name)
                raise refusal(pool, what, answer)

    async def confirm(self, pool: str, worker: str, name: str, incarnation: int) -> int | None:
        """Say that `start()` finished; returns the tasks in its mailbox, or None when the agent is another's now."""
        answer = await self._connection.call("confirm_agent", pool, worker, name, incarnation)
        return int(answer[1]) if answer[0] == "ok" else None

    async def fail(
        self, pool: str, worker: str, name: str, incarnation: int, *, failures: int, error: str, final: bool
    ) -> bool:
        """Report a failure; `final` ends the agent. Returns False when the agent is another's now."""
        while True:
            answer = await self._connection.call(
                "fail_agent", pool, worker, name, incarnation, failures, error, int(final)
            )
            if answer[0] != "more":
                return bool(answer[0] == "ok")

    async def terminate(self, agent_id: str, *, detail: str = "terminated on request") -> str:
        """End an agent; repeating it is quiet. Returns its worker, or ''. Raises `UnknownAgent`."""
        answer = await self._end(agent_id, detail, "", "")
        if answer[0] == "unknown":
            raise UnknownAgent(agent_id, hint=" List agents with: agentpool agents")
        return str(answer[1]) if answer[0] == "ok" else ""

    async def retire_idle(self, agent_id: str, last_used_at: int) -> bool:
        """End an agent if it is idle, has no mail, and was last used at `last_used_at`; tells whether it ended."""
        answer = await self._end(agent_id, "idle for longer than max_idle_time", str(last_used_at), "")
        return bool(answer[0] in ("ok", "ended", "unknown"))

    async def withdraw(self, agent_id: str, operation: str, *, even_running: bool = False) -> str | None:
        """Withdraw a request that is not fulfilled yet; returns the worker if the agent runs by now, else None.

        With `even_running` an agent that runs is ended too, provided that this request made it.
        """
        answer = await self._end(agent_id, "withdrawn: the caller stopped waiting", "", operation, even_running)
        return str(answer[2]) if answer[0] == "kept" else None

    async def _end(
        self, agent_id: str, detail: str, idle_since: str, operation: str, even_running: bool = False
    ) -> list[Any]:
        pool, name = split_id(agent_id)
        while True:
            answer: list[Any] = await self._connection.call(
                "terminate_agent", pool, name, detail, idle_since, operation, int(even_running)
            )
            if answer[0] != "more":
                return answer

    async def release(self, pool: str, worker: str, name: str, incarnation: int, snapshot: str = "") -> str:
        """Hand an agent over from a draining worker; returns placed, pending, stale or busy."""
        answer = await self._connection.call("release_agent", pool, worker, name, incarnation, snapshot)
        return str(answer[0])

    async def place_pending(self, pool: str, token: str, limit: int = 100) -> tuple[int, int, int]:
        """Place those who wait; returns (placed, still due, ms until the next is due or -1)."""
        answer = await self._connection.call("place_pending", pool, limit, token)
        return (int(answer[1]), int(answer[2]), int(answer[3])) if answer[0] == "ok" else (0, 0, -1)

    async def beat(self, pool: str, worker: str, names: Sequence[str]) -> None:
        """Record the heartbeats of at most 100 healthy agents."""
        await self._connection.call("beat_agents", pool, worker, *names)

    async def get(self, agent_id: str) -> AgentRecord:
        """Return the record of a live agent; raises `UnknownAgent`."""
        fields = await self._connection.repeat(lambda: self._connection.redis.hgetall(self._keys.agent(agent_id)))
        if not fields:
            raise UnknownAgent(agent_id, hint=" List agents with: agentpool agents")
        return decode_hash(AgentRecord, fields)

    async def several(self, agent_ids: Sequence[str]) -> list[AgentRecord]:
        """Return the records of those that are alive."""
        records = []
        for start in range(0, len(agent_ids), PAGE):
            records += await self._read(agent_ids[start : start + PAGE])
        return records

    async def ended(self, agent_id: str) -> tuple[str, str]:
        """Return (status, detail) of how an agent ended; ('terminated', '') when that is forgotten."""
        key = self._keys.ended(*split_id(agent_id))
        how = await self._connection.repeat(lambda: self._connection.redis.get(key)) or "terminated - 0 "
        status, _, _, detail = how.split(" ", 3)
        return status, detail

    async def snapshot(self, pool: str, name: str) -> str:
        """Return what the agent left at its last move, or ''."""
        key = self._keys.snapshot(pool, name)
        return str(await self._connection.repeat(lambda: self._connection.redis.get(key)) or "")

    async def all(self, pool: str) -> list[AgentRecord]:
        """Return all live agents of a pool, in the order of their names."""
        return await self.several([f"{pool}/{name}" for name in await self.names(pool)])

    async def names(self, pool: str) -> list[str]:
        """Return the names of all live agents: those who wait, and those on workers."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            workers = await redis.zrange(keys.workers(pool), 0, -1) + await redis.zrange(keys.lost(pool), 0, -1)
            async with redis.pipeline(transaction=False) as pipe:
                pipe.zrange(keys.pending(pool), 0, -1)
                for worker in workers:
                    pipe.smembers(keys.worker_agents(pool, worker))
                result: list[Any] = await pipe.execute()
                return result

        groups = await self._connection.repeat(read)
        return sorted({name for group in groups for name in group})

    async def _read(self, agent_ids: Sequence[str]) -> list[AgentRecord]:
        async def read() -> list[Any]:
            async with self._connection.redis.pipeline(transaction=False) as pipe:
                for agent_id in agent_ids:
                    pipe.hgetall(self._keys.agent(agent_id))
                result: list[Any] = await pipe.execute()
                return result

        return decode_hashes(AgentRecord, await self._connection.repeat(read))
