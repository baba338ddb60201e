"""What must be true of Redis between any two calls of scripts; numbers are those of the design's invariants.

It reads everything there is, so it is for small pools and for moments in which nothing else writes.
"""

from collections import Counter
from collections.abc import Iterable
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
            for name in ("processes", "workers", "starting", "draining", "lost", "pending", "suspects", "due", "dead")
        }
        self.held = {
            worker: {
                "agents": client.smembers(keys.worker_agents(pool, worker)),
                "tasks": set(client.zrange(keys.worker_tasks(pool, worker), 0, -1)),
                "runs": set(client.zrange(keys.worker_runs(pool, worker), 0, -1)),
                "cancels": client.smembers(keys.worker_cancels(pool, worker)),
                "waits": client.smembers(keys.worker_waits(pool, worker)),
            }
            for worker in {key.split(":")[3] for key in client.keys(keys.worker_agents(pool, "*")[:-7] + ":*")}
            | set(self.workers)
        }
        words: dict[str, str] = client.hgetall(keys.leases(pool))
        self.lease_words = words
        self.leases = {task: text.partition(" ")[0] for task, text in words.items()}
        """The worker of each leased task."""
        task_keys = client.keys(keys.task(f"{pool}/*"))
        self.tasks: dict[str, str] = (
            {key.removeprefix(keys.task("")): text for key, text in zip(task_keys, client.mget(task_keys), strict=True)}
            if task_keys
            else {}
        )
        self.lanes = self._queues(client, keys.lane(pool, "*", "*"), keys.lane(pool, "", "")[:-1])
        """Waiting tasks by `<lane>:<tenant>`."""
        self.known_lanes: set[str] = client.smembers(keys.lanes(pool))
        self.turns = self._queues(client, keys.turns(pool, "*"), keys.turns(pool, ""))
        self.held_tenants: set[str] = client.smembers(keys.held(pool))
        self.attempts: dict[str, str] = client.hgetall(keys.attempts(pool))
        self.errors = {key.removeprefix(keys.errors(pool, "")) for key in client.keys(keys.errors(pool, "*"))}
        self.letters = self._hashes(client, keys.letter(pool, "*"))
        self.children = {
            key.removeprefix(keys.children(pool, "")): client.smembers(key)
            for key in client.keys(keys.children(pool, "*"))
        }
        self.keys = {key: client.get(key) for key in client.keys(keys.key(pool, "*"))}
        self.mailboxes = self._queues(client, keys.mailbox(pool, "*"), keys.mailbox(pool, ""))
        self.tenant_agents = self._sets(client, keys.tenant_agents(pool, "*"))
        self.tenant_tasks = self._sets(client, keys.tenant_tasks(pool, "*"))
        self.tenant_waits = self._sets(client, keys.tenant_waits(pool, "*"))
        self.tenant_delayed = self._sets(client, keys.tenant_delayed(pool, "*"))
        self.came_back: set[str] = set()
        """Tasks that waited elsewhere before; a test that gives any back says so."""

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

    @property
    def delayed(self) -> set[str]:
        """Tasks whose time has not come."""
        return {timer.removeprefix("start ") for timer in self.index["due"] if timer.startswith("start ")}

    def header(self, task: str) -> list[str]:
        """Reply channel, agent, type, tenant, lane, later_us and options of an unfinished task."""
        return self.tasks[task].partition("\n")[0].split(" ")[1:]

    def counts(self, task: str) -> bool:
        """Whether an unfinished task counts against the bound of its queue."""
        return task not in self.came_back and not any(
            self.option(task, name) for name in ("parent", "delay", "replays")
        )

    def option(self, task: str, name: str) -> str:
        """Return the value of an option of an unfinished task, or ''."""
        words = dict(word.partition("=")[::2] for word in self.header(task)[6].split(","))
        return words.get(name, "")


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
    for queue in (*now.lanes.values(), *now.mailboxes.values(), now.leases, now.index["suspects"], now.delayed):
        places.update(list(queue))
    for task in now.unfinished:
        if places[task] != 1:
            found.append(f"3: task {task} is in {places[task]} places")
    found += [f"3: {task} has a place and an outcome" for task in places if task not in now.unfinished]
    for name, queue in now.mailboxes.items():
        if name not in now.agents:
            found.append(f"3: mailbox of {name}, who is not alive, has {queue}")
        found += [f"3: {task} is in the mailbox of {name}" for task in queue if now.header(task)[1] != name]
    for queue_name, queue in now.lanes.items():
        lane, _, tenant = queue_name.partition(":")
        for task in queue:
            if now.header(task)[3:5] != [tenant, lane]:
                found.append(f"3: {task} of {now.header(task)[3:5]} is in lane {queue_name}")
        if lane not in now.known_lanes:
            found.append(f"3: lane {lane} is not known")
        if (tenant in now.turns.get(lane, ())) == (tenant in now.held_tenants):
            found.append(f"3: {tenant} in lane {lane} has a turn and is held, or neither")
    for lane, tenants in now.turns.items():
        found += [
            f"3: {name} has a turn in {lane} and no tasks" for name in tenants if f"{lane}:{name}" not in now.lanes
        ]
    queued = sum(len(queue) for queue in now.lanes.values())
    if int(now.settings.get("queued", 0)) != queued:
        found.append(f"3: {queued} tasks are queued, the pool says {now.settings.get('queued')}")
    return found + _of_what_hangs_on_tasks(now)


def _of_what_hangs_on_tasks(now: Picture) -> list[str]:
    """What is kept beside a task goes with it."""
    found = [f"4: attempts of {task} are kept" for task in now.attempts if task not in now.unfinished]
    found += [f"4: errors of {task} are kept" for task in now.errors if task not in now.unfinished]
    found += [f"4: timer {timer} is kept" for timer in now.index["due"] if not _may_be_due(now, timer)]
    for parent, children in now.children.items():
        found += [f"4: {parent} waits for {task}, which is finished" for task in children - now.unfinished]
        if parent not in now.unfinished:
            found.append(f"4: {parent} is finished, and its children are kept")
    if set(now.letters) != set(now.index["dead"]):
        found.append(f"4: letters are {sorted(now.letters)}, the index has {sorted(now.index['dead'])}")
    found += [f"4: {task} is dead and unfinished" for task in now.letters if task in now.unfinished]
    for task in now.unfinished:
        digest = now.option(task, "key")
        if digest and not any(key.endswith(f":{digest}") for key in now.keys):
            found.append(f"4: the key of {task} is gone")
    return found


def _may_be_due(now: Picture, timer: str) -> bool:
    kind, _, id = timer.partition(" ")
    return kind == "tenant" or id in now.unfinished


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
        for what in ("cancels", "waits"):
            if stray := sets[what] - sets["tasks"] - sets["runs"]:
                found.append(f"6: {worker} has {sorted(stray)} in its {what}, which it does not run")
    for task, text in now.lease_words.items():
        if not _is_lease(text, now.tasks.get(task, "")):
            found.append(f"6: the lease of {task} says {text}")
    if held != now.leases:
        found.append(f"6: leases are {now.leases}, workers hold {held}")
    for task, worker in now.leases.items():
        if worker not in now.index["workers"] and worker not in now.index["lost"]:
            found.append(f"6: {task} is leased to {worker}, which neither beats nor is being reaped")
    return found


def _is_lease(words: str, record: str) -> bool:
    """Tell whether a lease reads well, and has the header line of its task."""
    try:
        rest, _, rank = words.rpartition(" ")
        _, ms, tokens, line = rest.split(" ", 3)
        return float(rank) >= 0 and float(ms) >= 0 and int(tokens) >= 0 and line == record.partition("\n")[0]
    except ValueError:
        return False


def _of_tenants(now: Picture) -> list[str]:
    agents: dict[str, set[str]] = {}
    for name, fields in now.agents.items():
        agents.setdefault(fields["tenant"], set()).add(name)
    tasks, delayed = _by_tenant(now, now.leases), _by_tenant(now, now.delayed)
    found = []
    if delayed != now.tenant_delayed:
        found.append(f"5: tenants have delayed {delayed}, their sets {now.tenant_delayed}")
    if agents != now.tenant_agents:
        found.append(f"5: tenants have agents {agents}, their sets {now.tenant_agents}")
    if tasks != now.tenant_tasks:
        found.append(f"5: tenants run {tasks}, their sets {now.tenant_tasks}")
    for tenant, waits in now.tenant_waits.items():
        if stray := waits - tasks.get(tenant, set()):
            found.append(f"5: {tenant} waits with {sorted(stray)}, which it does not run")
    waiting = {task for sets in now.held.values() for task in sets["waits"]}
    if waiting != set().union(*now.tenant_waits.values()):
        found.append(f"5: tenants wait with {now.tenant_waits}, workers with {waiting}")
    return found


def _by_tenant(now: Picture, ids: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for task in ids:
        found.setdefault(now.header(task)[3] if task in now.unfinished else "?", set()).add(task)
    return found


def _of_bounds(now: Picture) -> list[str]:
    """What was never taken yet is within its bound; what comes back, or begins late, is never refused."""
    bound = int(now.settings["max_queued"])
    found = []
    for name, queue in (*now.lanes.items(), *now.mailboxes.items()):
        new = [task for task in queue if now.counts(task)]
        if len(new) > bound:
            found.append(f"9: {name} has {len(new)}, bound {bound}")
    if len(now.letters) > int(now.settings["max_dead"]):
        found.append(f"9: there are {len(now.letters)} dead letters")
    return found
