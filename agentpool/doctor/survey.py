"""Everything that Redis holds of an installation, as plain values.

First a SCAN finds which keys there are (`finding.py`); then each pool is read in one transaction, so that what is
compared is of one moment. What is read may name ids that the scan did not find, new ones or broken ones: then the pool
is read again, with them.

Of tasks and dead letters there may be very many, so these are looked at page by page beside the transaction, which
holds the server up for a moment. A task's header never changes, and an outcome is final: what has ended in between, or
has come, is told by the next reading. A dead letter only has to agree with its own place in the index.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import msgspec

from agentpool.doctor.finding import Found, find
from agentpool.doctor.paging import PAGE, in_pages
from agentpool.protocol.keys import Keys
from agentpool.protocol.tasks import TaskHeader, decode_header
from agentpool.store import Store

__all__ = ["Held", "Survey", "TaskRow", "take_surveys"]

HEADER_BYTES_MAX = 2501
ROUNDS_MAX = 5
"""Readings of one pool until nothing new is named; on a quiet one it takes two."""


class TaskRow(msgspec.Struct, frozen=True):
    """A task's string, read no further than its header: none, or an unfinished task, or an outcome."""

    header: TaskHeader | None
    finished: bool = False


class Held(msgspec.Struct, frozen=True):
    """What the sets of one worker name."""

    agents: frozenset[str]
    tasks: frozenset[str]
    runs: frozenset[str]
    cancels: frozenset[str]
    waits: frozenset[str]


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """One pool at one moment. Sets of names and ids; times are Redis time in ms."""

    pool: str
    is_listed: bool = True
    """The list of pools names it."""
    now_ms: int
    info: dict[str, str]
    processes: dict[str, float]
    workers: dict[str, float]
    starting: dict[str, float]
    draining: dict[str, float]
    lost: dict[str, float]
    pending: dict[str, float]
    suspects: dict[str, float]
    due: dict[str, float]
    """Timers, `<kind> <id>`."""
    dead: frozenset[str] = frozenset()
    """Tasks that stand in the index of dead letters."""
    lanes: frozenset[str]
    """Every lane that was ever used."""
    turns: dict[str, frozenset[str]]
    """Tenants with a turn, by lane."""
    held_tenants: frozenset[str]
    limits: dict[str, str]
    attempts: dict[str, str]
    lease_words: dict[str, str]
    leases: dict[str, str]
    """The worker of each leased task."""
    leader_lock: str
    placement_lock: str
    records: dict[str, dict[str, str]]
    """Hashes of workers by id."""
    held: dict[str, Held]
    agents: dict[str, dict[str, str]]
    """Hashes of agents by name."""
    mailboxes: dict[str, frozenset[str]]
    queues: dict[str, frozenset[str]]
    """Waiting task ids by `<lane>:<tenant>`."""
    letters: frozenset[str] = frozenset()
    """Tasks of which there is a dead letter."""
    tenant_agents: dict[str, frozenset[str]]
    tenant_tasks: dict[str, frozenset[str]]
    tenant_waits: dict[str, frozenset[str]]
    tenant_delayed: dict[str, frozenset[str]]
    tasks: dict[str, TaskRow]
    """All that are unfinished, and of the others those that something names as if they were not."""

    @property
    def heartbeat_timeout_ms(self) -> int:
        """Silence that counts as death."""
        return int(float(self.info.get("heartbeat_timeout_ms") or 10_000))


async def take_surveys(store: Store) -> dict[str, Survey]:
    """Read all pools, those of which only leavings exist too."""
    listed = frozenset(await store.pools.names())
    found = await find(store, listed)
    return {
        pool: msgspec.structs.replace(await _survey(store, pool, ids), is_listed=pool in listed)
        for pool, ids in sorted(found.items())
    }


async def _survey(store: Store, pool: str, ids: Found) -> Survey:
    # Letters first: what is one by then is finished, and still is when the rest is read.
    letters, dead = await _read_letters(store, pool, ids.letters)
    ids.tasks.difference_update(await _finished(store, ids.tasks))
    survey = await _read(store, pool, ids)
    return msgspec.structs.replace(survey, letters=letters, dead=dead)


# -- what is looked at in pages ---------------------------------------------------------------------------------


async def _read_letters(store: Store, pool: str, ids: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return which of these letters, and of those that the index names, exist; and which stand in the index."""
    keys, redis = store.keys, store.connection.redis
    named, cursor = set(ids), None
    while cursor != 0:
        scan = partial(redis.zscan, keys.dead(pool), cursor or 0, count=PAGE)
        cursor, page = await store.connection.repeat(scan)
        named.update(id for id, _ in page)

    def ask(pipe: Any, id: str) -> None:
        pipe.exists(keys.letter(pool, id))
        pipe.zscore(keys.dead(pool), id)

    letters, dead = set(), set()
    async for id, (exists, died_at) in in_pages(store, named, ask):
        if exists:
            letters.add(id)
        if died_at is not None:
            dead.add(id)
    return frozenset(letters), frozenset(dead)


async def _finished(store: Store, ids: Iterable[str]) -> set[str]:
    """Return which of these tasks have their outcome."""
    return {id for id, first in (await _first_bytes(store, ids, 1)).items() if first == "{"}


async def _first_bytes(store: Store, ids: Iterable[str], count: int) -> dict[str, str]:
    """Return what the records of these tasks begin with, of those that there are."""
    found: dict[str, str] = {}
    rest = iter(ids)
    while page := list(islice(rest, PAGE)):
        asked = [("GETRANGE", store.keys.task(id), 0, count - 1) for id in page]
        answers = await store.connection.ask_all(asked)
        found.update((id, text) for id, text in zip(page, answers, strict=True) if text)
    return found


# -- what is in them --------------------------------------------------------------------------------------------


async def _read(store: Store, pool: str, ids: Found) -> Survey:
    tasks: dict[str, TaskRow] = {}
    for _ in range(ROUNDS_MAX):
        survey = await _read_once(store, pool, ids)
        has_more = ids.add(_ids_named_in(survey))
        new = await _first_bytes(store, ids.tasks - tasks.keys(), HEADER_BYTES_MAX)
        tasks.update((id, _task_row(text)) for id, text in new.items())
        survey = msgspec.structs.replace(survey, tasks=tasks)
        if not (ids.add(_ids_named_in(survey)) or has_more):
            break
    return survey


async def _read_once(store: Store, pool: str, ids: Found) -> Survey:
    plan = _Plan(store.keys, pool, ids)

    async def read() -> list[Any]:
        async with store.connection.redis.pipeline(transaction=True) as pipe:
            plan.queue(pipe)
            result: list[Any] = await pipe.execute()
            return result

    return plan.survey(await store.connection.repeat(read))


def _ids_named_in(survey: Survey) -> Found:
    """Return every id that anything in the survey names."""
    named = Found()
    for index in (survey.processes, survey.workers, survey.starting, survey.draining, survey.lost):
        named.workers.update(index)
    named.workers.update(survey.leases.values())
    named.tasks.update(survey.leases, survey.suspects, survey.attempts)
    named.tasks.update(timer.partition(" ")[2] for timer in survey.due if not timer.startswith("tenant "))
    named.agents.update(survey.pending, survey.mailboxes, *survey.tenant_agents.values())
    named.lanes.update(survey.lanes)
    named.queues.update(f"{lane}:{tenant}" for lane, tenants in survey.turns.items() for tenant in tenants)
    named.lanes.update(queue.rpartition(":")[0] for queue in survey.queues)
    for held in survey.held.values():
        named.agents.update(held.agents)
        named.tasks.update(held.tasks, held.runs, held.cancels, held.waits)
    of_tenants = (*survey.tenant_tasks.values(), *survey.tenant_waits.values(), *survey.tenant_delayed.values())
    for tasks in (*survey.mailboxes.values(), *survey.queues.values(), *of_tenants):
        named.tasks.update(tasks)
    for agent in survey.agents.values():
        named.tenants.add(agent.get("tenant", ""))
        named.workers.add(agent.get("process_id", ""))
    for header in (task.header for task in survey.tasks.values() if task.header):
        named.tenants.add(header.tenant)
        if header.agent_name:
            named.mailboxes.add(header.agent_name)
        else:
            named.queues.add(f"{header.lane}:{header.tenant}")
    named.workers.discard("")
    return named


class _Plan:
    """The commands of one transaction, and how their answers are read, in the same order."""

    def __init__(self, keys: Keys, pool: str, ids: Found) -> None:
        self._keys, self._pool = keys, pool
        self._workers, self._agents = sorted(ids.workers), sorted(ids.agents)
        self._mailboxes, self._queues, self._tenants = sorted(ids.mailboxes), sorted(ids.queues), sorted(ids.tenants)
        self._lanes = sorted(ids.lanes)

    def queue(self, pipe: Any) -> None:
        """Put the commands into a pipeline."""
        keys, pool = self._keys, self._pool
        pipe.time()
        pipe.hgetall(keys.pool(pool))
        indexes = (keys.processes, keys.workers, keys.starting, keys.draining, keys.lost, keys.pending)
        for index in (*indexes, keys.suspects, keys.due):
            pipe.zrange(index(pool), 0, -1, withscores=True)
        pipe.smembers(keys.lanes(pool))
        pipe.smembers(keys.held(pool))
        for table in (keys.limits, keys.attempts, keys.leases):
            pipe.hgetall(table(pool))
        pipe.get(keys.leader_lock(pool))
        pipe.get(keys.placement_lock(pool))
        for worker in self._workers:
            pipe.hgetall(keys.process(worker))
            pipe.smembers(keys.worker_agents(pool, worker))
            pipe.zrange(keys.worker_tasks(pool, worker), 0, -1)
            pipe.zrange(keys.worker_runs(pool, worker), 0, -1)
            pipe.smembers(keys.worker_cancels(pool, worker))
            pipe.smembers(keys.worker_waits(pool, worker))
        for name in self._agents:
            pipe.hgetall(keys.agent(f"{pool}/{name}"))
        for name in self._mailboxes:
            pipe.zrange(keys.mailbox(pool, name), 0, -1)
        for lane in self._queues:
            pipe.zrange(keys.lane(pool, *_lane_parts(lane)), 0, -1)
        for lane in self._lanes:
            pipe.zrange(keys.turns(pool, lane), 0, -1)
        for tenant in self._tenants:
            pipe.smembers(keys.tenant_agents(pool, tenant))
            pipe.smembers(keys.tenant_tasks(pool, tenant))
            pipe.smembers(keys.tenant_waits(pool, tenant))
            pipe.smembers(keys.tenant_delayed(pool, tenant))

    def survey(self, answers: list[Any]) -> Survey:
        """Read the answers."""
        rest = iter(answers)
        seconds, microseconds = next(rest)
        info = next(rest)
        indexes = [dict(next(rest)) for _ in range(8)]
        processes, workers, starting, draining, lost, pending, suspects, due = indexes
        lanes, held_tenants = frozenset(next(rest)), frozenset(next(rest))
        limits, attempts, leases = next(rest), next(rest), next(rest)
        leader, placement = next(rest) or "", next(rest) or ""
        records, held = self._read_workers(rest)
        agents = _named(self._agents, rest, dict)
        mailboxes, queues = _named(self._mailboxes, rest, frozenset), _named(self._queues, rest, frozenset)
        turns = _named(self._lanes, rest, frozenset)
        of_tenants: list[dict[str, frozenset[str]]] = [{}, {}, {}, {}]
        for tenant in self._tenants:
            for sets in of_tenants:
                sets[tenant] = frozenset(next(rest))
        return Survey(
            pool=self._pool,
            now_ms=seconds * 1000 + microseconds // 1000,
            info=info,
            processes=processes,
            workers=workers,
            starting=starting,
            draining=draining,
            lost=lost,
            pending=pending,
            suspects=suspects,
            due=due,
            lanes=lanes,
            turns=turns,
            held_tenants=held_tenants,
            limits=limits,
            attempts=attempts,
            lease_words=leases,
            leases={task: words.partition(" ")[0] for task, words in leases.items()},
            leader_lock=leader,
            placement_lock=placement,
            records=records,
            held=held,
            agents=agents,
            mailboxes=mailboxes,
            queues=queues,
            tenant_agents=of_tenants[0],
            tenant_tasks=of_tenants[1],
            tenant_waits=of_tenants[2],
            tenant_delayed=of_tenants[3],
            tasks={},
        )

    def _read_workers(self, rest: Any) -> tuple[dict[str, dict[str, str]], dict[str, Held]]:
        records, held = {}, {}
        for worker in self._workers:
            if record := next(rest):
                records[worker] = record
            held[worker] = Held(*(frozenset(next(rest)) for _ in range(5)))
        return records, held


def _named(names: Iterable[str], rest: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
    """Read one answer for each name, and leave out what is gone by now."""
    rows: Mapping[str, Any] = {name: next(rest) for name in names}
    return {name: read(row) for name, row in rows.items() if row}


def _lane_parts(lane: str) -> tuple[str, str]:
    name, _, tenant = lane.rpartition(":")
    return name, tenant


def _task_row(raw: str) -> TaskRow:
    if raw.startswith("{"):
        return TaskRow(None, finished=True)
    words = raw.partition("\n")[0].split(" ")
    return TaskRow(decode_header(raw)) if words[0] == "task" and len(words) == 8 else TaskRow(None)
