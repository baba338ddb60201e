"""The simulator's server does what the real scripts do: both get the same calls at the same times.

The real ones run on a real server, from the product's own library with three words changed: time is the simulator's,
leases do not lapse by themselves, and what is taken at random is taken in order.
"""

import random
from typing import Any

import pytest
import redis
from simulation.scenario import seeds
from simulation.server import START_BACKOFF_MS, Server
from support.seeds import SETTINGS

from agentpool.protocol.keys import Keys
from agentpool.store.scripts import library

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
LEASE_MS = 5000
MASTERS, NAMES = ("m1", "m2"), ("a1", "a2", "a3", "a4", "a5")
SEEDS, CALLS = 10, 110
POOL = {"min_workers": 0, "max_workers": 3, "max_pending": 3}

IN_ORDER = """
local function in_order(key, count)
  local found = redis.call('SMEMBERS', key)
  table.sort(found)
  return {unpack(found, 1, math.min(#found, tonumber(count)))}
end
"""
CHANGED = (
    ("redis.call('TIME')", "redis.call('HMGET', 'sim:clock', 's', 'us')"),
    ("'PX', lease_ms", f"'PX', {HOUR_MS}"),
    ("redis.call('PEXPIRE', key, lease_ms)", "redis.call('EXISTS', key)"),
    ("redis.call('SRANDMEMBER', ", "in_order("),
    ("redis.register_function{function_name = '", "redis.register_function{function_name = 'sim_"),
)


class Real:
    """The scripts on a server, called by the same names as the simulator's."""

    def __init__(self, url: str) -> None:
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self.keys, self.lapses = Keys(), {"leader": 0, "placement": 0}
        text = library().text.replace("\n", "\n" + IN_ORDER, 1)
        for word, instead in CHANGED:
            assert word in text, f"the scripts no longer say {word}"
            text = text.replace(word, instead)
        text = text.replace(library().name, "sim", 1)
        self.redis.function_load(text, replace=True)

    def begin(self, now: int) -> None:
        self.redis.flushdb()
        self.set_time(now)
        fields = {**SETTINGS, **POOL, "pool_name": "p", "desired": 0, "floor": 0, "status": "active"}
        self.redis.hset(self.keys.pool("p"), mapping=fields)
        self.redis.hset(self.keys.types("p"), "R", "{}")

    def set_time(self, now: int) -> None:
        self.redis.hset("sim:clock", mapping={"s": now // 1000, "us": now % 1000 * 1000})
        self.now = now
        for lock, until in self.lapses.items():
            if now >= until:
                self.redis.delete(self.keys.leader_lock("p") if lock == "leader" else self.keys.placement_lock("p"))

    def call(self, name: str, *arguments: Any) -> list[Any]:
        answer: list[Any] = self.redis.execute_command(
            "FCALL", f"sim_{name}_{library().hash}", 1, "pool:p", "p", "", "", *arguments
        )
        return answer

    def take_lock(self, lock: str, holder: str, lease_ms: int) -> list[Any]:
        answer = self.call("take_lock", lock, holder, lease_ms)
        if answer[0] == "taken":
            self.lapses[lock] = self.now + lease_ms
        return answer

    def lead_pool(self, master: str, lease_ms: int, gap_ms: int, hold_ms: int) -> list[Any]:
        answer = self.call("lead_pool", master, lease_ms, gap_ms, hold_ms)
        if answer[0] == "leads":
            self.lapses["leader"] = self.now + lease_ms
        return answer[: 3 if answer[0] == "leads" else 2]

    def update_pool(self, token: str, field: str, value: int) -> list[Any]:
        return self.call("update_pool", token, field, value, "")

    def reserve_workers(
        self, leader: str, placement: str, master: str, most: int, orders: list[tuple[str, str]]
    ) -> list[Any]:
        words = [word for order in orders for word in order]
        return self.call("reserve_workers", leader, placement, master, most, *words)

    def start_worker(self, worker: str, secret: str) -> list[Any]:
        return self.call("start_worker", worker, secret, "pid", 1)

    def register_worker(self, worker: str, secret: str, capacity: int) -> list[Any]:
        answer = self.call("register_worker", worker, secret, capacity, "pid", 1)
        return [answer[0], *map(int, answer[1:])]

    def beat_worker(self, worker: str) -> list[Any]:
        return self.call("beat_worker", worker, 0, "", 0, "", 1, 0)[:3]

    def read_worker(self, worker: str) -> list[Any]:
        answer = self.call("read_worker", worker)
        if answer[0] == "gone":
            return answer
        agents = {row[0]: int(row[2]) for row in answer[3:] if len(row) > 5}
        return [*answer[:3], agents]

    def drain_worker(self, worker: str, only_idle: bool, leader: str = "") -> list[Any]:
        return self.call("drain_worker", worker, "test", int(only_idle), leader)

    def retire_worker(self, worker: str) -> list[Any]:
        return self.call("retire_worker", worker, "test")[:1]

    def reap_worker(self, worker: str, proof: str, authority: str, timeout: int, limit: int, backoff: int) -> list[Any]:
        return self.call("reap_worker", worker, proof, authority, timeout, "test", limit, 5, backoff)

    def place_agent(self, name: str, operation: str) -> list[Any]:
        answer = self.call("place_agent", name, "R", "default", "", 0, 0, "", operation)
        return [answer[0], *(word.split()[0] if answer[0] == "ended" else word for word in answer[1:])]

    def place_pending(self, token: str) -> list[Any]:
        return self.call("place_pending", 100, token)

    def confirm_agent(self, worker: str, name: str, incarnation: int) -> list[Any]:
        return self.call("confirm_agent", worker, name, incarnation)[:1]

    def release_agent(self, worker: str, name: str, incarnation: int) -> list[Any]:
        return self.call("release_agent", worker, name, incarnation, "")

    def terminate_agent(self, name: str) -> list[Any]:
        return self.call("terminate_agent", name, "test", "", "", "")

    def observe_pool(self) -> dict[str, int]:
        answer = self.call("observe_pool")
        names = ("now_ms", "workers", "starting", "draining", "ready", "pending", "due")
        return {**dict(zip(names, answer, strict=False)), "free_slots": answer[10], "lost": answer[11]}

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.call(name, *arguments)


def state(server: Server) -> dict[str, Any]:
    """What the real one shows of it, too."""
    return {
        "pool": {name: server.pool[name] for name in ("floor", "desired", "tick", "hold_until")},
        "fences": dict(server.fences),
        "workers": {
            id: (fields["status"], fields["master"], fields["version"], sorted(fields["agents"]), fields["idle_since"])
            for id, fields in server.workers.items()
        },
        "free": {worker: server.free(worker) for worker in server.named("ready")},
        "agents": {
            name: (agent["status"], agent["worker"], agent["incarnation"], agent["crashes"], agent["crashes_alone"])
            for name, agent in server.agents.items()
        },
        "pending": dict(server.pending),
    }


def real_state(real: Real) -> dict[str, Any]:
    client, keys = real.redis, real.keys
    every = client.keys("*")
    workers = [key.partition(":")[2] for key in every if key.startswith("process:")]
    agents = [key.partition("/")[2] for key in every if key.startswith("agent:")]
    pipe = client.pipeline(transaction=False)
    pipe.hgetall(keys.pool("p"))
    for index in (keys.processes("p"), keys.pending("p")):
        pipe.zrange(index, 0, -1, withscores=True)
    for worker in workers:
        pipe.hmget(keys.process(worker), "status", "master", "version", "idle_since")
        pipe.smembers(keys.worker_agents("p", worker))
    for name in agents:
        pipe.hmget(keys.agent(f"p/{name}"), "status", "process_id", "incarnation", "crashes", "crashes_alone")
    pool, free, pending, *rows = pipe.execute()
    of_workers, of_agents = rows[: 2 * len(workers)], rows[2 * len(workers) :]
    return {
        "pool": {name: int(pool.get(name, 0)) for name in ("floor", "desired", "tick", "hold_until")},
        "fences": {"leader": int(pool.get("fence", 0)), "placement": int(pool.get("placement_fence", 0))},
        "workers": {
            id: (status, master, int(version), sorted(held), int(idle or 0))
            for id, (status, master, version, idle), held in zip(
                workers, of_workers[::2], of_workers[1::2], strict=True
            )
        },
        "free": dict(free),
        "agents": {
            name: (status, owner, *(int(number or 0) for number in numbers))
            for name, (status, owner, *numbers) in zip(agents, of_agents, strict=True)
        },
        "pending": dict(pending),
    }


class Caller:
    """Chooses the next call from what there is now, good and bad ones."""

    def __init__(self, seed: int, server: Server) -> None:
        self.random, self.server, self.count = random.Random(seed), server, 0

    def worker(self) -> str:
        return self.random.choice([*self.server.workers, "w0"])

    def token(self, lock: str = "leader") -> str:
        return self.server.token(lock) if self.random.random() < 0.9 else "7 m1"

    def agent_on(self) -> tuple[str, str, int]:
        name = self.random.choice([*self.server.agents, "a1"])
        agent = self.server.agents.get(name, {"worker": "w0", "incarnation": 1})
        late = self.random.random() < 0.1
        return agent["worker"] or "w0", name, agent["incarnation"] - late

    def helpful(self) -> tuple[Any, ...] | None:
        """What brings the pool to work, so that more can happen to it."""
        server = self.server
        if not server.token("leader"):
            return ("lead_pool", "m1", LEASE_MS, 2000, 1000)
        if not server.workers and not server.token("placement"):
            return ("take_lock", "placement", "m1", LEASE_MS)
        if not server.workers and server.token("placement"):
            return (
                "reserve_workers",
                server.token("leader"),
                server.token("placement"),
                "m1",
                2,
                [(f"w{self.count}", "s")],
            )
        for worker in server.named("ordered", "starting"):
            return ("register_worker", worker, server.workers[worker]["secret"], 2)
        return None

    def next_call(self) -> tuple[Any, ...]:
        chance = self.random
        self.count += 1
        if chance.random() < 0.4 and (call := self.helpful()):
            return call
        orders = [(f"w{self.count}-{n}", "s") for n in range(1, 3)]
        ids = [(id, fields["secret"]) for id, fields in self.server.workers.items()]
        worker = self.worker()
        proof = chance.choice(["owner", "stale", "lost", "unstarted"])
        owner = self.server.workers.get(worker, {}).get("master", "m1") if chance.random() < 0.7 else "m2"
        authority = owner if proof == "owner" else self.token()
        name = chance.choice(NAMES)
        known = self.server.agents.get(name, {}).get("operation", "") if chance.random() < 0.2 else ""
        return chance.choice(
            [
                ("lead_pool", chance.choice(MASTERS), LEASE_MS, 2000, 3000),
                ("take_lock", "placement", chance.choice(MASTERS), LEASE_MS),
                ("release_lock", *chance.choice([("leader", self.token()), ("placement", self.token("placement"))])),
                ("reserve_workers", self.token(), self.token("placement"), chance.choice(MASTERS), 2, orders),
                ("reserve_workers", self.token(), self.token("placement"), chance.choice(MASTERS), 2, orders),
                ("start_worker", *chance.choice([*ids, ("w0", "s")])),
                *[("register_worker", *chance.choice([*ids, ("w0", "s")]), chance.choice([1, 2, 3]))] * 2,
                ("beat_worker", worker),
                ("read_worker", worker),
                ("drain_worker", worker, chance.random() < 0.5, chance.choice(["", self.token()])),
                ("retire_worker", worker),
                *[("reap_worker", worker, proof, authority, 3000, chance.choice([1, 1, 100]), START_BACKOFF_MS)] * 2,
                *[("place_agent", name, known or f"o{self.count}")] * 3,
                ("place_pending", self.token()),
                *[("confirm_agent", *self.agent_on())] * 2,
                ("release_agent", *self.agent_on()),
                ("terminate_agent", name),
                ("observe_pool",),
                ("scale_pool", chance.choice([0, 2, 9])),
                ("update_pool", self.token(), "desired", chance.choice([0, 1, 2])),
            ]
        )


@pytest.fixture
def real(redis_url: str) -> Any:
    real = Real(redis_url)
    yield real
    real.redis.function_delete("sim")
    real.redis.close()


def test_the_model_cannot_drift_from_the_scripts(real: Real) -> None:
    done = set()
    for seed in seeds(SEEDS):
        model = Server(START_MS, **POOL)
        real.begin(START_MS)
        caller = Caller(seed, model)
        for _ in range(CALLS):
            model.now += caller.random.choice([0, 1, 10, 400, 400, 2500])
            real.set_time(model.now)
            name, *arguments = call = caller.next_call()
            expected, found = getattr(model, name)(*arguments), getattr(real, name)(*arguments)
            if isinstance(found, list):
                expected = list(expected)
            assert found == expected, f"AGENTPOOL_SIM_SEED={seed}: {call}"
            assert real_state(real) == state(model), f"AGENTPOOL_SIM_SEED={seed}: after {call}: {found}"
            done.add((name, str(found[0]) if isinstance(found, list) and found else ""))
    if len(seeds(SEEDS)) > 1:
        for wanted in [
            ("reap_worker", "done"), ("reap_worker", "more"), ("reap_worker", "held"), ("reap_worker", "alive"),
            ("reap_worker", "fenced"), ("place_agent", "full"), ("place_agent", "placed"), ("retire_worker", "busy"),
            ("place_agent", "pending"), ("release_agent", "placed"), ("release_agent", "pending"),
            ("place_pending", "ok"), ("drain_worker", "busy"), ("confirm_agent", "ok"), ("confirm_agent", "stale"),
            ("place_agent", "duplicate"), ("beat_worker", "gone"), ("lead_pool", "follows"),
        ]:  # fmt: skip
            assert wanted in done, f"never happened: {wanted}"
