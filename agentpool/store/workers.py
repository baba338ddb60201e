"""Workers in Redis: ordered, registered, beating, drained, reaped, read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from agentpool.errors import UnknownWorker
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import Beat, DesiredAgent, WorkerRecord, WorkerView, decode_hashes
from agentpool.protocol.refusals import refusal
from agentpool.protocol.states import AgentStatus, WorkerStatus
from agentpool.store.connection import Connection, SyncConnection

__all__ = ["Proof", "Workers", "beat_worker", "register_worker"]

RESTORED_PER_CALL = 50
TURN_GAP_MS = 2000
"""Time without a turn of any master after which silence proves nothing, as `reap_worker` counts it."""

Proof = Literal["owner", "stale", "unstarted", "lost"]
"""How the end of a worker is known: its master saw it, its beats stopped, it never registered, it is fenced."""


def _pairs(fields: Mapping[str, object]) -> list[object]:
    return [word for pair in fields.items() for word in pair]


def register_worker(
    connection: SyncConnection, pool: str, worker: str, secret: str, capacity: int, fields: Mapping[str, object]
) -> int | None:
    """Register from the worker's own process, before its loop runs; returns its version, or None when not ordered."""
    answer = connection.call("register_worker", pool, worker, secret, capacity, *_pairs(fields))
    return int(answer[1]) if answer[0] == "ok" else None


def beat_worker(
    connection: SyncConnection,
    pool: str,
    worker: str,
    *,
    loop_lag_ms: int,
    memory_bytes: int | None,
    cpu_percent: float,
    warm: str = "",
    listens: bool = False,
    ahead: int = 0,
) -> Beat | None:
    """Send one heartbeat; None means that the worker was given up and must exit."""
    memory = "" if memory_bytes is None else memory_bytes
    figures = (loop_lag_ms, memory, round(cpu_percent, 1))
    answer = connection.call("beat_worker", pool, worker, *figures, warm, int(listens), ahead)
    if answer[0] == "gone":
        return None
    _, version, status, turns, next_due_ms, master_beat = answer
    return Beat(
        version=int(version),
        status=WorkerStatus(status),
        turns=int(turns),
        next_due_ms=int(next_due_ms),
        master_beat=int(master_beat),
    )


class Workers:
    """Doors to workers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys

    async def reserve(
        self,
        pool: str,
        orders: Sequence[tuple[str, str]],
        *,
        leader: str,
        placement: str,
        master: str,
        max_starting: int,
    ) -> list[str] | None:
        """Order workers given as (id, secret); returns the ids ordered, or None when a token is no longer held."""
        words = [word for order in orders for word in order]
        answer = await self._connection.call("reserve_workers", pool, leader, placement, master, max_starting, *words)
        return None if answer[0] == "fenced" else [str(worker) for worker in answer[1:]]

    async def start(self, pool: str, worker: str, secret: str, fields: Mapping[str, object]) -> bool:
        """Record who was forked for an order; False when the order is gone."""
        answer = await self._connection.call("start_worker", pool, worker, secret, *_pairs(fields))
        return bool(answer[0] == "ok")

    async def view(self, pool: str, worker: str) -> WorkerView | None:
        """Return all that the worker shall hold, or None when it was given up."""
        answer = await self._connection.call("read_worker", pool, worker)
        if answer[0] == "gone":
            return None
        _, version, status, cancels, tasks, runs, *rows = answer
        return WorkerView(
            version=int(version),
            status=WorkerStatus(status),
            cancels=tuple(cancels),
            tasks=tuple(tasks),
            runs=tuple(runs),
            agents=tuple(_desired(pool, row) for row in rows if row[1]),
        )

    async def restore(
        self, pool: str, worker: str, fields: Mapping[str, object], agents: Sequence[DesiredAgent], *, drains: bool
    ) -> bool:
        """After the server started anew, tell again who the worker is and which agents it has; False when it was given
        up. Those with the status `pending` are not there although they should be. Raises `UnknownPool` as long as no
        master has applied the pool's settings.
        """
        words = _pairs(fields)
        for start in range(0, max(len(agents), 1), RESTORED_PER_CALL):
            rows = [word for agent in agents[start : start + RESTORED_PER_CALL] for word in _row(agent)]
            status = WorkerStatus.DRAINING if drains else WorkerStatus.READY
            answer = await self._connection.call("restore_worker", pool, worker, status, len(words) // 2, *words, *rows)
            if answer[0] == "unknown_pool":
                raise refusal(pool, pool, answer)
            if answer[0] == "gone":
                return False
        return True

    async def drain(self, pool: str, worker: str, *, reason: str, only_idle: bool = False, leader: str = "") -> bool:
        """Have a worker finish and hand over; with `only_idle`, False when something is on it.

        With the token of a leader that decided it, False also when that is no longer held.
        """
        answer = await self._connection.call("drain_worker", pool, worker, reason, int(only_idle), leader)
        match answer[0]:
            case "ok":
                return True
            case "busy" | "fenced":
                return False
            case word:
                raise refusal(pool, worker, ["unknown_worker"] if word == "unknown" else answer)

    async def retire(self, pool: str, worker: str, *, reason: str) -> bool:
        """Let an empty worker leave; False while it holds anything."""
        answer = await self._connection.call("retire_worker", pool, worker, reason)
        return bool(answer[0] != "busy")

    async def reap(
        self,
        pool: str,
        worker: str,
        *,
        proof: Proof,
        authority: str,
        reason: str,
        timeout_ms: int = 0,
        crashes_max: int = 5,
        backoff_ms: int = 500,
        blame: Mapping[str, str] | None = None,
    ) -> str:
        """Fence a dead worker and give back all it held; returns done, gone, fenced, alive or held.

        `blame`: for each task that had begun there, `suspect` if it may have killed the worker, `overdue` if it blocked
        it past its own time, else `started`.
        """
        words = _pairs(blame or {})
        while True:
            answer = await self._connection.call(
                "reap_worker", pool, worker, proof, authority, timeout_ms, reason, 100, crashes_max, backoff_ms, *words
            )
            if answer[0] != "more":
                return str(answer[0])

    async def pool_of(self, worker: str) -> str:
        """Return the pool of a registered worker; raises `UnknownWorker`."""
        key = self._keys.process(worker)
        pool = await self._connection.repeat(lambda: self._connection.redis.hget(key, "pool_name"))
        if not pool:
            raise UnknownWorker(worker, hint=" List workers with: agentpool workers")
        return str(pool)

    async def all(self, pool: str) -> list[WorkerRecord]:
        """Return all workers of a pool that are not gone, oldest order first."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            workers = await redis.zrange(keys.workers(pool), 0, -1) + await redis.zrange(keys.lost(pool), 0, -1)
            return await self._read(dict.fromkeys(workers))  # one that was fenced between the reads is in both

        records = decode_hashes(WorkerRecord, await self._connection.repeat(read))
        return sorted(records, key=lambda record: (record.ordered_at, record.process_id))

    async def silent(self, pool: str, older_than_ms: int) -> list[WorkerRecord]:
        """Return at most 100 workers whose last beat or order is older than this Redis time."""
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            return await self._read(
                await redis.zrange(keys.workers(pool), "-inf", older_than_ms, byscore=True, offset=0, num=100)
            )

        return decode_hashes(WorkerRecord, await self._connection.repeat(read))

    async def record(self, worker: str) -> WorkerRecord | None:
        """Return one worker, or None when it is not registered."""
        return next(
            iter(decode_hashes(WorkerRecord, await self._connection.repeat(lambda: self._read([worker])))), None
        )

    async def signs(self, pool: str, workers: Sequence[str]) -> tuple[int, bool, dict[str, tuple[int, int, str]]]:
        """Return the Redis time in ms of a master's last turn, whether silence proves nothing now, and by worker its
        last beat, its loop lag in ms, and its status.

        Silence counts up to that turn: since then the server may have taken no writes, beats neither, though it can be
        read. After a time without any turn there is a hold.
        """
        redis, keys = self._connection.redis, self._keys

        async def read() -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hmget(keys.pool(pool), "tick", "hold_until")
                pipe.zmscore(keys.workers(pool), list(workers))
                for worker in workers:
                    pipe.hmget(keys.process(worker), "loop_lag_ms", "status")
                result: list[Any] = await pipe.execute()
                return result

        (seconds, microseconds), (tick, hold), beats, *rows = await self._connection.repeat(read)
        now_ms = seconds * 1000 + microseconds // 1000
        is_held = now_ms - int(tick or 0) > TURN_GAP_MS or now_ms < int(hold or 0)
        signs = {
            worker: (int(beat), int(lag or 0), status)
            for worker, beat, (lag, status) in zip(workers, beats, rows, strict=True)
            if beat is not None and status
        }
        return int(tick or 0), is_held, signs

    async def status(self, worker: str) -> str:
        """Return a worker's status, or '' when it is not registered."""
        key = self._keys.process(worker)
        return str(await self._connection.repeat(lambda: self._connection.redis.hget(key, "status")) or "")

    async def lost(self, pool: str) -> list[str]:
        """Return at most 100 workers that are fenced but not yet emptied."""
        key = self._keys.lost(pool)
        return list(await self._connection.repeat(lambda: self._connection.redis.zrange(key, 0, 99)))

    async def _read(self, workers: Iterable[str]) -> list[Any]:
        async with self._connection.redis.pipeline(transaction=False) as pipe:
            for worker in workers:
                pipe.hgetall(self._keys.process(worker))
            result: list[Any] = await pipe.execute()
            return result


def _row(agent: DesiredAgent) -> list[object]:
    """Return the words of an agent that a worker has, or, without a status, has not."""
    status = "" if agent.status is AgentStatus.PENDING else agent.status
    return [
        split_id(agent.agent_id)[1], agent.agent_type, agent.incarnation, agent.tenant, agent.project,
        agent.max_idle_ms, agent.heartbeat_ms, status,
    ]  # fmt: skip


def _desired(pool: str, row: Sequence[Any]) -> DesiredAgent:
    name, agent_type, incarnation, tenant, project, max_idle, heartbeat, status, waiting = row
    return DesiredAgent(
        agent_id=f"{pool}/{name}",
        agent_type=agent_type,
        incarnation=int(incarnation),
        tenant=tenant,
        project=project,
        max_idle_ms=int(max_idle),
        heartbeat_ms=int(heartbeat),
        status=AgentStatus(status),
        waiting=int(waiting),
    )
