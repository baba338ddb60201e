"""What Redis and the scripts do for workers and pinned agents, on a clock that the simulator moves.

Each public method is one script and answers as it does. `test_server.py` gives the real scripts on a real server the
same calls on the same clock and compares every answer and every state, so that this cannot drift from them.
"""

import pickle
from typing import Any

__all__ = ["CRASHES_MAX", "START_BACKOFF_MS", "Command", "Server"]

Command = tuple[str, int, str, str, int]
"""To a worker: its id, its version or 0, what, the agent, its incarnation."""

CRASHES_MAX = 5
START_BACKOFF_MS = 500
TICK_FRESH_MS = 2000


class Server:
    """One pool. Times are in ms of the server's clock; ids are words."""

    def __init__(self, now: int, **settings: int) -> None:
        self.now = now
        self.settings = {"min_workers": 0, "max_workers": 5, "max_pending": 1000, **settings}
        self.pool: dict[str, int] = {"floor": 0, "desired": 0, "tick": 0, "hold_until": 0, "server_run": 0}
        self.run = 1
        """Another after each restart."""
        self.fences = {"leader": 0, "placement": 0}
        self.locks: dict[str, tuple[str, int]] = {}
        """Token and when it lapses."""
        self.workers: dict[str, dict[str, Any]] = {}
        self.agents: dict[str, dict[str, Any]] = {}
        self.pending: dict[str, float] = {}
        self.ended: dict[str, tuple[str, str, int]] = {}
        """Status, operation and incarnation of ended agents."""
        self.published: list[Command] = []
        self.hints: list[str] = []

    # -- what it loses ------------------------------------------------------------------------------------------

    def saved(self) -> bytes:
        """Return what would be on disk now."""
        return pickle.dumps((self.pool, self.fences, self.locks, self.workers, self.agents, self.pending, self.ended))

    def lose_tail(self, saved: bytes) -> None:
        """Go back to what was on disk."""
        self.pool, self.fences, self.locks, self.workers, self.agents, self.pending, self.ended = pickle.loads(saved)
        self.run += 1

    # -- locks --------------------------------------------------------------------------------------------------

    def token(self, lock: str) -> str:
        token, until = self.locks.get(lock, ("", 0))
        return token if self.now < until else ""

    def _holds(self, lock: str, token: str) -> bool:
        return token != "" and self.token(lock) == token

    def take_lock(self, lock: str, holder: str, lease_ms: int) -> tuple[str, ...]:
        token = self.token(lock)
        if token and token.partition(" ")[2] != holder:
            return "held", token
        if not token:
            self.fences[lock] = max(self.fences[lock] + 1, self.now)
            token = f"{self.fences[lock]} {holder}"
        self.locks[lock] = (token, self.now + lease_ms)
        return "taken", token

    def release_lock(self, lock: str, token: str) -> tuple[str, ...]:
        if token == "" or self.token(lock) != token:
            return ("gone",)
        del self.locks[lock]
        if lock == "leader":
            self.hints.append("leader resigned")
        return ("ok",)

    def lead_pool(self, master: str, lease_ms: int, gap_ms: int, hold_ms: int) -> tuple[str, ...]:
        if self.now - self.pool["tick"] > gap_ms:
            self.pool["hold_until"] = self.now + hold_ms
        if self.pool["server_run"] != self.run:
            if self.pool["server_run"]:
                self.pool["hold_until"] = self.now + hold_ms
            self.pool["server_run"] = self.run
        self.pool["tick"] = self.now
        before = self.token("leader")
        word, token = self.take_lock("leader", master, lease_ms)
        if word == "held":
            return "follows", token
        return "leads", token, "1" if token != before else "0"

    # -- the pool -----------------------------------------------------------------------------------------------

    def update_pool(self, token: str, field: str, value: int) -> tuple[str, ...]:
        if not self._holds("leader", token):
            return ("fenced",)
        self.pool[field] = value
        return ("ok",)

    def scale_pool(self, workers: int) -> tuple[Any, ...]:
        low, high = self.settings["min_workers"], self.settings["max_workers"]
        if not low <= workers <= high:
            return "outside", low, high
        self.pool |= {"floor": workers, "desired": workers}
        self.hints.append("scaled")
        return ("ok",)

    def read_pool(self) -> dict[str, int]:
        return dict(self.pool)

    def lost_workers(self) -> list[str]:
        return self.named("lost")

    def observe_pool(self) -> dict[str, int]:
        live = self.named("ordered", "starting", "ready", "draining")
        return {
            "now_ms": self.now,
            "workers": len(live),
            "starting": len(self.named("ordered", "starting")),
            "draining": len(self.named("draining")),
            "ready": len(self.named("ready")),
            "pending": len(self.pending),
            "due": sum(due <= self.now for due in self.pending.values()),
            "free_slots": sum(self.free(worker) for worker in self.named("ready")),
            "lost": len(self.named("lost")),
        }

    def all_workers(self) -> dict[str, dict[str, Any]]:
        return {
            id: {**fields, "free": self.free(id), "agents": set(fields["agents"])}
            for id, fields in self.workers.items()
        }

    def named(self, *statuses: str) -> list[str]:
        return [id for id, fields in self.workers.items() if fields["status"] in statuses]

    # -- workers ------------------------------------------------------------------------------------------------

    def free(self, worker: str) -> int:
        fields = self.workers[worker]
        return max(0, fields["capacity"] - len(fields["agents"]))

    def reserve_workers(
        self, leader: str, placement: str, master: str, max_starting: int, orders: list[tuple[str, str]]
    ) -> tuple[str, ...]:
        if not (self._holds("leader", leader) and self._holds("placement", placement)):
            return ("fenced",)
        bound = self.settings["max_workers"] + bool(self.named("draining"))
        ordered = ["ok"]
        for id, secret in orders:
            live, starting = self.named("ordered", "starting", "ready", "draining"), self.named("ordered", "starting")
            if id not in self.workers:
                if len(live) >= bound or len(starting) >= max_starting:
                    break
                self.workers[id] = {
                    "status": "ordered", "master": master, "secret": secret, "version": 0, "beat": self.now,
                    "capacity": 0, "agents": set(), "idle_since": 0,
                }  # fmt: skip
            ordered.append(id)
        return tuple(ordered)

    def start_worker(self, worker: str, secret: str) -> tuple[str, ...]:
        fields = self._alive(worker)
        if not fields or fields["secret"] != secret:
            return ("gone",)
        if fields["status"] == "ordered":
            fields["status"] = "starting"
        return ("ok",)

    def register_worker(self, worker: str, secret: str, capacity: int) -> tuple[Any, ...]:
        fields = self._alive(worker)
        if not fields or fields["secret"] != secret:
            return ("gone",)
        fields["beat"] = self.now
        if fields["status"] in ("ordered", "starting"):
            fields |= {"status": "ready", "capacity": capacity}
            self._fill(worker)
            self.hints.append("worker ready")
        return "ok", fields["version"]

    def beat_worker(self, worker: str) -> tuple[Any, ...]:
        fields = self._alive(worker)
        if not fields:
            return ("gone",)
        fields["beat"] = self.now
        return "ok", fields["version"], fields["status"]

    def read_worker(self, worker: str) -> tuple[Any, ...]:
        fields = self._alive(worker)
        if not fields:
            return ("gone",)
        agents = {name: self.agents[name]["incarnation"] for name in sorted(fields["agents"])}
        return "ok", fields["version"], fields["status"], agents

    def drain_worker(self, worker: str, only_idle: bool, leader: str = "") -> tuple[str, ...]:
        if leader and not self._holds("leader", leader):
            return ("fenced",)
        fields = self._alive(worker)
        if not fields:
            return ("unknown",)
        if fields["status"] in ("ordered", "starting"):
            return ("starting",)
        if fields["status"] == "ready":
            if only_idle and fields["agents"]:
                return ("busy",)
            if only_idle:
                self.pool["desired"] = max(self.pool["desired"] - 1, 0)
            fields["status"] = "draining"
            self.hints.append("worker draining")
            self._command(worker, "drain")
        else:
            self.published.append((worker, 0, "drain", "", 0))
        return ("ok",)

    def retire_worker(self, worker: str) -> tuple[str, ...]:
        fields = self.workers.get(worker)
        if not fields or fields["status"] not in ("ready", "draining"):
            return ("gone",)
        if fields["agents"]:
            return ("busy",)
        del self.workers[worker]
        self.hints.append("worker stopped")
        return ("ok",)

    def reap_worker(
        self, worker: str, proof: str, authority: str, timeout_ms: int = 0, limit: int = 100, backoff_ms: int = 500
    ) -> tuple[Any, ...]:
        fields = self.workers.get(worker)
        if not fields:
            return ("gone",)
        if (verdict := self._may_reap(fields, proof, authority, timeout_ms)) != "yes":
            return (verdict,)
        if fields["status"] != "lost":
            starting = [name for name in fields["agents"] if self.agents[name]["status"] == "placed"]
            fields |= {"status": "lost", "starter": starting[0] if len(starting) == 1 else ""}
            self.published.append((worker, 0, "shutdown", "", 0))
        moved = apart = 0
        for name in sorted(fields["agents"])[:limit]:
            fields["agents"].discard(name)
            apart += self._return_agent(name, name == fields["starter"], backoff_ms, apart + 1)
            moved += 1
        if fields["agents"]:
            return "more", moved
        del self.workers[worker]
        self.hints.append("worker reaped")
        return "done", moved

    def _may_reap(self, fields: dict[str, Any], proof: str, authority: str, timeout_ms: int) -> str:
        if proof == "owner":
            return "yes" if fields["master"] == authority else "fenced"
        if not self._holds("leader", authority):
            return "fenced"
        if proof == "lost":
            return "yes" if fields["status"] == "lost" else "alive"
        if self.is_held() or self.pool["server_run"] != self.run:
            return "held"
        if proof == "unstarted" and fields["status"] not in ("ordered", "starting"):
            return "alive"
        beat = fields["beat"] if fields["status"] != "lost" else 0
        # Up to the last turn of a master: since then the server may have taken no beats.
        return "yes" if min(self.now, self.pool["tick"]) - beat >= timeout_ms else "alive"

    def is_held(self) -> bool:
        """Whether silence proves nothing now."""
        return self.now - self.pool["tick"] > TICK_FRESH_MS or self.now < self.pool["hold_until"]

    def signs(self) -> tuple[int, bool, dict[str, tuple[int, str]]]:
        beats = {id: (fields["beat"], fields["status"]) for id, fields in self.workers.items()}
        return self.pool["tick"], self.is_held(), beats

    def silent(self, older_than_ms: int) -> list[tuple[str, bool]]:
        live = self.named("ordered", "starting", "ready", "draining")
        found = [id for id in live if self.workers[id]["beat"] <= older_than_ms]
        return [(id, self.workers[id]["status"] in ("ordered", "starting")) for id in found]

    def _alive(self, worker: str) -> dict[str, Any] | None:
        fields = self.workers.get(worker)
        return fields if fields and fields["status"] != "lost" else None

    def _command(self, worker: str, what: str, agent: str = "") -> None:
        fields = self.workers[worker]
        fields["version"] += 1
        incarnation = self.agents[agent]["incarnation"] if agent in self.agents else 0
        self.published.append((worker, fields["version"], what, agent, incarnation))

    def _rescore(self, worker: str) -> None:
        fields = self.workers[worker]
        fields["idle_since"] = 0 if fields["agents"] else fields["idle_since"] or self.now

    # -- agents -------------------------------------------------------------------------------------------------

    def place_agent(self, name: str, operation: str, kind: str = "") -> tuple[Any, ...]:
        known = self.agents.get(name)
        if known:
            if known["operation"] != operation:
                return ("duplicate",)
            return ("placed", known["worker"]) if known["worker"] else ("pending",)
        status, ended_by, incarnation = self.ended.get(name, ("", "", 0))
        if ended_by == operation:
            return "ended", status
        if not self._pick() and len(self.pending) >= self.settings["max_pending"]:
            return "full", len(self.pending), self.settings["max_pending"]
        self.agents[name] = {
            "status": "pending", "worker": "", "incarnation": incarnation, "operation": operation, "crashes": 0,
            "crashes_alone": 0, "spawned_at": self.now, "kind": kind,
        }  # fmt: skip
        self.ended.pop(name, None)
        worker = self._place_or_queue(name)
        return ("placed", worker) if worker else ("pending",)

    def place_pending(self, token: str, limit: int = 100) -> tuple[Any, ...]:
        if not self._holds("leader", token):
            return ("fenced",)
        placed = 0
        for name in self._due()[:limit]:
            if not (worker := self._pick()):
                break
            self._assign(name, worker)
            placed += 1
        later = [due for due in self.pending.values() if due > self.now]
        return "ok", placed, len(self._due()), int(min(later) - self.now) if later else -1

    def confirm_agent(self, worker: str, name: str, incarnation: int) -> tuple[str, ...]:
        agent = self._of(worker, name, incarnation)
        if not agent:
            return ("stale",)
        if agent["status"] == "placed":
            agent |= {"status": "idle", "crashes": 0, "crashes_alone": 0}
        return ("ok",)

    def release_agent(self, worker: str, name: str, incarnation: int) -> tuple[str, ...]:
        agent = self._of(worker, name, incarnation)
        if not agent:
            return ("stale",)
        self.workers[worker]["agents"].discard(name)
        self._rescore(worker)
        target = self._place_or_queue(name)
        return ("placed", target) if target else ("pending",)

    def terminate_agent(self, name: str) -> tuple[str, ...]:
        if name not in self.agents:
            return ("ended",) if name in self.ended else ("unknown",)
        worker = self._end(name, "terminated")
        if worker:
            self._fill(worker)
        return "ok", worker

    def _of(self, worker: str, name: str, incarnation: int) -> dict[str, Any] | None:
        agent = self.agents.get(name)
        return agent if agent and (agent["worker"], agent["incarnation"]) == (worker, incarnation) else None

    def _pick(self) -> str:
        ready = [(self.free(worker), worker) for worker in self.named("ready")]
        free, worker = max(ready, default=(0, ""))
        return worker if free else ""

    def _assign(self, name: str, worker: str) -> None:
        agent = self.agents[name]
        agent |= {"status": "placed", "worker": worker, "incarnation": max(agent["incarnation"] + 1, self.now)}
        self.pending.pop(name, None)
        self.workers[worker]["agents"].add(name)
        self._rescore(worker)
        self._command(worker, "spawn", name)

    def _queue(self, name: str, due: float) -> None:
        self.agents[name] |= {"status": "pending", "worker": ""}
        self.pending[name] = due

    def _place_or_queue(self, name: str) -> str:
        worker = self._pick()
        if worker:
            self._assign(name, worker)
        else:
            self._queue(name, self.agents[name]["spawned_at"])
            self.hints.append("room wanted")
        return worker

    def _due(self) -> list[str]:
        return [name for due, name in sorted((due, name) for name, due in self.pending.items()) if due <= self.now]

    def _fill(self, worker: str) -> None:
        if self.workers[worker]["status"] == "ready":
            self._rescore(worker)
            for name in self._due()[: min(self.free(worker), 100)]:
                self._assign(name, worker)

    def _return_agent(self, name: str, is_alone: bool, backoff_ms: int, apart: int) -> bool:
        """Place it again or let it wait; tells whether it waits apart from others."""
        agent = self.agents[name]
        if agent["status"] != "placed":
            self._place_or_queue(name)
            return False
        agent["crashes"] += 1
        agent["crashes_alone"] += is_alone
        if agent["crashes_alone"] >= CRASHES_MAX:
            agent["worker"] = ""
            self._end(name, "failed")
        elif agent["crashes"] == 1:
            self._place_or_queue(name)
        else:
            self._queue(name, self.now + backoff_ms * 2 ** min(agent["crashes"] - 2, 6) * apart)
            return True
        return False

    def _end(self, name: str, status: str) -> str:
        agent = self.agents.pop(name)
        self.pending.pop(name, None)
        self.ended[name] = (status, agent["operation"], agent["incarnation"])
        worker: str = agent["worker"]
        if worker:
            self.workers[worker]["agents"].discard(name)
            self._rescore(worker)
            self._command(worker, "terminate", name)
        return worker
