"""Which ids the keys of an installation name, by pool and kind."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from agentpool.doctor.paging import in_pages
from agentpool.protocol.keys import Keys, pool_of, split_id
from agentpool.store import Store

__all__ = ["Found", "find"]

MARK = "\0"
"""Stands for an id in a key that is taken apart: no id holds it."""


class Found(msgspec.Struct, frozen=True):
    """Ids of one pool by kind."""

    workers: set[str] = msgspec.field(default_factory=set)
    agents: set[str] = msgspec.field(default_factory=set)
    tasks: set[str] = msgspec.field(default_factory=set)
    mailboxes: set[str] = msgspec.field(default_factory=set)
    queues: set[str] = msgspec.field(default_factory=set)
    lanes: set[str] = msgspec.field(default_factory=set)
    letters: set[str] = msgspec.field(default_factory=set)
    tenants: set[str] = msgspec.field(default_factory=set)

    def add(self, other: "Found") -> bool:
        """Take in what the other holds; tells whether anything was new."""
        before = self._size()
        for field in self.__struct_fields__:
            getattr(self, field).update(getattr(other, field))
        return self._size() > before

    def _size(self) -> int:
        return sum(len(getattr(self, field)) for field in self.__struct_fields__)


async def find(store: Store, listed: Iterable[str]) -> dict[str, Found]:
    """Return the ids by pool, of the pools `listed` and of all others of which there is anything."""
    keys, redis = store.keys, store.connection.redis
    pattern = _escaped(keys.prefix) + "*"
    every: list[str] = []
    cursor = None
    while cursor != 0:
        scan = partial(redis.scan, cursor or 0, match=pattern, count=1000)
        cursor, page = await store.connection.repeat(scan)
        every += page
    found = {pool: Found() for pool in listed}
    others = _sort_by_id(keys, every, found)
    for pool in _pools_in(keys, others):
        found.setdefault(pool, Found())
    for pool, ids in found.items():
        _sort_by_pool(keys, pool, others, ids)
    await _sort_workers(store, others, found)
    return found


def _pools_in(keys: Keys, every: Iterable[str]) -> list[str]:
    """Return the pools that have settings."""
    names = (_between(key, keys.pool(MARK)) for key in every)
    return [name for name in names if name and ":" not in name]


def _sort_by_id(keys: Keys, every: Iterable[str], found: dict[str, Found]) -> list[str]:
    """Sort the keys whose ids name their pool; returns the others."""
    others = []
    of_task, of_agent = keys.task(MARK), keys.agent(MARK)
    for key in every:
        if task := _between(key, of_task):
            found.setdefault(pool_of(task), Found()).tasks.add(task)
        elif agent := _between(key, of_agent):
            pool, name = split_id(agent)
            found.setdefault(pool, Found()).agents.add(name)
        else:
            others.append(key)
    return others


def _sort_by_pool(keys: Keys, pool: str, every: Iterable[str], ids: Found) -> None:
    for key in every:
        if name := _between(key, keys.mailbox(pool, MARK)):
            ids.mailboxes.add(name)
        elif queue := _between(key, keys.lane(pool, MARK, "")[:-1]):
            ids.queues.add(queue)
        elif lane := _between(key, keys.turns(pool, MARK)):
            ids.lanes.add(lane)
        elif task := _between(key, keys.letter(pool, MARK)):
            ids.letters.add(task)
        elif tenant := _tenant_of(keys, pool, key):
            ids.tenants.add(tenant)
        elif worker := _worker_of(keys, pool, key):
            ids.workers.add(worker)


def _worker_of(keys: Keys, pool: str, key: str) -> str:
    sets = (keys.worker_agents, keys.worker_tasks, keys.worker_runs, keys.worker_cancels, keys.worker_waits)
    return next((worker for of in sets if (worker := _between(key, of(pool, MARK)))), "")


def _tenant_of(keys: Keys, pool: str, key: str) -> str:
    sets = (keys.tenant_agents, keys.tenant_tasks, keys.tenant_waits, keys.tenant_delayed)
    return next((tenant for of in sets if (tenant := _between(key, of(pool, MARK)))), "")


async def _sort_workers(store: Store, every: Iterable[str], found: dict[str, Found]) -> None:
    """Sort process hashes by the pool that they name."""
    workers = [worker for key in every if (worker := _between(key, store.keys.process(MARK)))]

    def ask(pipe: Any, worker: str) -> None:
        pipe.hget(store.keys.process(worker), "pool_name")

    async for worker, (pool,) in in_pages(store, workers, ask):
        found.setdefault(pool or "", Found()).workers.add(worker)


def _between(key: str, pattern: str) -> str:
    """Return what stands in `key` where `pattern` has its mark, or ''."""
    head, _, tail = pattern.partition(MARK)
    fits = key.startswith(head) and key.endswith(tail) and len(key) > len(head) + len(tail)
    return key[len(head) : len(key) - len(tail)] if fits else ""


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in text)
