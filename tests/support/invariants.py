"""What must be true of Redis between any two calls of scripts; numbers are those of the design's invariants.

It reads everything there is, so it is for small pools and for moments in which nothing else writes.
"""

from collections import Counter
from typing import Any

import redis

from agentpool.protocol.keys import Keys

__all__ = ["Picture", "take_picture", "violations"]


class Picture:
    """Everything of one pool, as plain data."""

    def __init__(self, client: Any, keys: Keys, pool: str) -> None:
        self.pool = pool
        self.settings: dict[str, str] = client.hgetall(keys.pool(pool))
        self.workers = self._hashes(client, keys.process("*"))
        self.agents = {id.partition("/")[2]: fields for id, fields in self._hashes(client, keys.agent("*")).items()}
        self.index = {
            name: dict(client.zrange(getattr(keys, name)(pool), 0, -1, withscores=True))
            for name in ("processes", "workers", "starting", "draining", "lost", "pending", "lanes")
        }
        self.held = {
            worker: {
                "agents": client.smembers(keys.worker_agents(pool, worker)),
                "tasks": set(client.zrange(keys.worker_tasks(pool, worker), 0, -1)),
                "runs": set(client.zrange(keys.worker_runs(pool, worker), 0, -1)),
                "cancels": client.smembers(keys.worker_cancels(pool, worker)),
            }
            for worker in {key.split(":")[3] for key in client.keys(keys.worker_agents(pool, "*")[:-7] + ":*")}
            | set(self.workers)
        }
        self.leases: dict[str, str] = client.hgetall(keys.leases(pool))
        task_keys = client.keys(keys.task(f"{pool}/*"))
        self.tasks: dict[str, str] = (
            {key.removeprefix(keys.task("")): text for key, text in zip(task_keys, client.mget(task_keys), strict=True)}
            if task_keys
            else {}
        )
        self.lanes = self._queues(client, keys.lane(pool, "*", "*"), keys.lane(pool, "", "")[:-1])
        self.mailboxes = self._queues(client, keys.mailbox(pool, "*"), keys.mailbox(pool, ""))
        self.tenant_agents = self._sets(client, keys.tenant_agents(pool, "*"))
        self.tenant_tasks = self._sets(client, keys.tenant_tasks(pool, "*"))

    @staticmethod
    def _hashes(client: Any, pattern: str) -> dict[str, dict[str, str]]:
        return {key.removeprefix(pattern[:-1]): client.hgetall(key) for key in client.keys(pattern)}

    @staticmethod
    def _queues(client: Any, pattern: str, prefix: str) -> dict[str, list[str]]:
        return {key.removeprefix(prefix): client.zrange(key, 0, -1) for key in client.keys(pattern)}

    @staticmethod
    def _sets(client: Any, pattern: str) -> dict[str, set[str]]:
        return {key.split(":")[2]: client.smembers(key) for key in client.keys(pattern)}

    @property
    def unfinished(self) -> set[str]:
        """Tasks without an outcome."""
        return {id for id, text in self.tasks.items() if text.startswith("task ")}

    def header(self, task: str) -> list[str]:
        """Reply channel, agent, type and tenant of an unfinished task."""
        return self.tasks[task].partition("\n")[0].split(" ")[1:]


def take_picture(client: redis.Redis, pool: str = "p", keys: Keys | None = None) -> Picture:
    """Read a pool."""
    return Picture(client, keys or Keys(), pool)


def violations(now: Picture) -> list[str]:
    """Return everything that is wrong, in words; nothing when all is well."""
    return [
        *_of_indexes(now),
        *_of_agents(now),
        *_of_tasks(now),
        *_of_leases(now),
        *_of_tenants(now),
        *_of_bounds(now),
    ]


def _of_indexes(now: Picture) -> list[str]:
    found = []
    by_status: dict[str, set[str]] = {}
    for id, fields in now.workers.items():
        by_status.setdefault(fields["status"], set()).add(id)
    expected = {
        "processes": by_status.get("ready", set()),
        "workers": set().union(*(by_status.get(s, set()) for s in ("ordered", "starting", "ready", "draining"))),
        "starting": by_status.get("ordered", set()) | by_status.get("starting", set()),
        "draining": by_status.get("draining", set()),
        "lost": by_status.get("lost", set()),
    }
    for name, workers in expected.items():
        if set(now.index[name]) != workers:
            found.append(f"1: {name} has {sorted(now.index[name])}, statuses say {sorted(workers)}")
    for id, fields in now.workers.items():
        held = now.held[id]
        free = max(0, int(fields.get("capacity", 0)) - len(held["agents"]) - len(held["tasks"]))
        if id in now.index["processes"] and now.index["processes"][id] != free:
            found.append(f"1: {id} has {free} free slots, its score is {now.index['processes'][id]}")
        if "agent_count" in fields and fields["status"] != "lost":
            counts = (len(held["agents"]), len(held["tasks"]), free)
            shown = tuple(int(fields[name]) for name in ("agent_count", "task_count", "available"))
            if counts != shown:
                found.append(f"1: {id} shows {shown}, has {counts}")
        idle = not held["agents"] and not held["tasks"]
        if fields["status"] == "ready" and bool(fields.get("idle_since")) != idle:
            found.append(f"1: {id} is {'' if idle else 'not '}idle, idle_since is {fields.get('idle_since')!r}")
    found += [f"1: {id} holds {held} and has no record" for id, held in now.held.items() if id not in now.workers]
    return found


def _of_agents(now: Picture) -> list[str]:
    found = []
    places = Counter(dict.fromkeys(now.index["pending"], 1))
    for held in now.held.values():
        places.update(held["agents"])
    for name, fields in now.agents.items():
        if places[name] != 1:
            found.append(f"2: agent {name} is in {places[name]} places")
        if (fields["status"] == "pending") != (name in now.index["pending"]):
            found.append(f"2: agent {name} is {fields['status']}, pending has {sorted(now.index['pending'])}")
        if (fields["process_id"] == "") != (fields["status"] == "pending"):
            found.append(f"2: agent {name} is {fields['status']} on {fields['process_id']!r}")
        if fields["process_id"] and name not in now.held.get(fields["process_id"], {}).get("agents", ()):
            found.append(f"2: agent {name} says {fields['process_id']}, which does not hold it")
        lost = now.workers.get(fields["process_id"], {}).get("status") == "lost"
        if (fields["status"] == "active") != bool(fields["task_id"]) and not lost:
            found.append(f"2: agent {name} is {fields['status']} with task {fields['task_id']!r}")
        if fields["task_id"] and not lost and now.leases.get(fields["task_id"]) != fields["process_id"]:
            found.append(f"2: agent {name} runs {fields['task_id']}, whose lease is another's")
    found += [f"2: {name} has a place and no record" for name in places if name not in now.agents]
    return found


def _of_tasks(now: Picture) -> list[str]:
    found = []
    places: Counter[str] = Counter()
    for queue in (*now.lanes.values(), *now.mailboxes.values(), now.leases):
        places.update(list(queue))
    for task in now.unfinished:
        if places[task] != 1:
            found.append(f"3: task {task} is in {places[task]} places")
    found += [f"3: {task} has a place and an outcome" for task in places if task not in now.unfinished]
    for name, queue in now.mailboxes.items():
        if name not in now.agents:
            found.append(f"3: mailbox of {name}, who is not alive, has {queue}")
        found += [f"3: {task} is in the mailbox of {name}" for task in queue if now.header(task)[1] != name]
    if set(now.lanes) != set(now.index["lanes"]):
        found.append(f"3: lanes with tasks are {sorted(now.lanes)}, the index has {sorted(now.index['lanes'])}")
    return found


def _of_leases(now: Picture) -> list[str]:
    found = []
    held: dict[str, str] = {}
    for worker, sets in now.held.items():
        if twice := sets["tasks"] & sets["runs"]:
            found.append(f"6: {worker} has {sorted(twice)} twice")
        for task in sets["tasks"] | sets["runs"]:
            if task in held:
                found.append(f"6: {task} is held by {held[task]} and {worker}")
            held[task] = worker
        if stray := sets["cancels"] - sets["tasks"] - sets["runs"]:
            found.append(f"6: {worker} shall cancel {sorted(stray)}, which it does not run")
    if held != now.leases:
        found.append(f"6: leases are {now.leases}, workers hold {held}")
    for task, worker in now.leases.items():
        if worker not in now.index["workers"] and worker not in now.index["lost"]:
            found.append(f"6: {task} is leased to {worker}, which neither beats nor is being reaped")
    return found


def _of_tenants(now: Picture) -> list[str]:
    agents: dict[str, set[str]] = {}
    for name, fields in now.agents.items():
        agents.setdefault(fields["tenant"], set()).add(name)
    tasks: dict[str, set[str]] = {}
    for task in now.leases:
        tasks.setdefault(now.header(task)[3] if task in now.unfinished else "?", set()).add(task)
    found = []
    if agents != now.tenant_agents:
        found.append(f"5: tenants have agents {agents}, their sets {now.tenant_agents}")
    if tasks != now.tenant_tasks:
        found.append(f"5: tenants run {tasks}, their sets {now.tenant_tasks}")
    return found


def _of_bounds(now: Picture) -> list[str]:
    bound = int(now.settings["max_queued"])
    queues = [*now.lanes.items(), *now.mailboxes.items()]
    return [f"9: {name} has {len(queue)}, bound {bound}" for name, queue in queues if len(queue) > bound]
