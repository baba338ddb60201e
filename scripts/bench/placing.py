"""Whether placing an agent costs more when there is more: the script's time in the server, few workers against many.

Two servers are filled, then asked in turns, so that whatever disturbs the machine disturbs both.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis

from agentpool.protocol.codec import new_id
from agentpool.store.connection import SyncConnection
from bench.figures import Figure, median, show
from bench.running import POOL, scratch_server
from bench.sizes import Sizes

__all__ = ["measure"]

FEW_WORKERS = 10
CAPACITY = 1000
BATCH = 20
CHUNK = 5000
POOL_FIELDS = {
    "pool_name": POOL,
    "status": "active",
    "placement": "least_loaded",
    "max_pending": 10_000,
    "min_workers": 0,
    "max_workers": 100_000,
}


def measure(sizes: Sizes) -> list[Figure]:
    """Return how the script's time grows with what is registered."""
    few, many = FEW_WORKERS, sizes.many_workers
    with _filled(few, sizes.agents_each) as small, _filled(many, sizes.agents_each) as large:
        _run(small, large, BATCH)
        runs = [_run(small, large, sizes.placements) for _ in range(sizes.runs)]
    ratios = [median(after) / median(before) for before, after in runs]
    before, after = (median(time for run in runs for time in run[i]) for i in (0, 1))
    return [
        Figure(
            what=f"placement script, {few} workers → {many:,} workers and {many * sizes.agents_each:,} agents",
            unit="×",
            values=(median(ratios),),
            must=(1.5,),
            aim=(1.2,),
            floor=f"{show((before, after), 'µs')} a call; of {len(runs)} runs {show((min(ratios), max(ratios)), '×')}",
        )
    ]


def _run(small: SyncConnection, large: SyncConnection, calls: int) -> tuple[list[float], list[float]]:
    """Return the times of a call in µs on the small and on the large server, of each batch."""
    batches = [(_batch(small), _batch(large)) for _ in range(max(1, calls // BATCH))]
    return [before for before, _ in batches], [after for _, after in batches]


def _batch(server: SyncConnection) -> float:
    """Place a few agents and end them again; returns the server's own time for one placement, in µs."""
    names = [new_id() for _ in range(BATCH)]
    before = _script_time(server.redis)
    for name in names:
        server.call("place_agent", POOL, name, "Idle", "default", "", 0, 0, "client:c:replies", name)
    after = _script_time(server.redis)
    for name in names:
        server.call("terminate_agent", POOL, name, "ended", "", "")
    return (after[0] - before[0]) / (after[1] - before[1])


def _script_time(client: Any) -> tuple[int, int]:
    """Return the µs that scripts took so far, and how many there were."""
    stats = client.info("commandstats").get("cmdstat_fcall", {"usec": 0, "calls": 0})
    return int(stats["usec"]), int(stats["calls"])


# -- filling --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _filled(workers: int, agents_each: int) -> Iterator[SyncConnection]:
    """A server with so many workers and agents."""
    with scratch_server() as url:
        connection = SyncConnection(url, timeout=30)
        try:
            _fill(connection, workers, agents_each)
            yield connection
        finally:
            connection.close()


def _fill(connection: SyncConnection, workers: int, agents_each: int) -> None:
    keys, client = connection.keys, connection.redis
    client.sadd(keys.pools(), POOL)
    client.hset(keys.pool(POOL), mapping=POOL_FIELDS)
    client.hset(keys.types(POOL), "Idle", '{"name":"Idle","module":"bench.agents"}')
    now = client.time()[0] * 1000
    _in_chunks(client, (_worker(connection, now, agents_each) for _ in range(workers)))


def _worker(connection: SyncConnection, now: int, agents_each: int) -> Callable[[Any], None]:
    """Return what adds one worker with its agents to a pipeline."""
    keys, worker = connection.keys, new_id()
    names = [new_id() for _ in range(agents_each)]
    free = CAPACITY - agents_each
    process = {"process_id": worker, "pool_name": POOL, "status": "ready", "capacity": CAPACITY, "version": 0}
    counts = {"agent_count": agents_each, "available": free, "started_at": now, "last_beat": now}

    def add(pipe: Any) -> None:
        pipe.hset(keys.process(worker), mapping=process | counts)
        pipe.zadd(keys.workers(POOL), {worker: now})
        pipe.zadd(keys.processes(POOL), {worker: free})
        if names:
            pipe.sadd(keys.worker_agents(POOL, worker), *names)
            pipe.sadd(keys.tenant_agents(POOL, "default"), *names)
        for name in names:
            pipe.hset(keys.agent(f"{POOL}/{name}"), mapping=_agent(name, worker, now))

    return add


def _agent(name: str, worker: str, now: int) -> dict[str, Any]:
    return {
        "agent_id": f"{POOL}/{name}",
        "pool_name": POOL,
        "agent_type": "Idle",
        "status": "idle",
        "process_id": worker,
        "tenant": "default",
        "incarnation": 1,
        "spawned_at": now,
    }


def _in_chunks(client: redis.Redis, additions: Iterable[Callable[[Any], None]]) -> None:
    pipe = client.pipeline(transaction=False)
    for add in additions:
        add(pipe)
        if len(pipe) > CHUNK:
            pipe.execute()
    pipe.execute()
