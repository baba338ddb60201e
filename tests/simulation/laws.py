"""What must hold after each script, and what must be so some time after the last fault."""

from typing import Any

from simulation.actors import Client, Town
from simulation.server import CRASHES_MAX
from simulation.world import World

__all__ = ["Broken", "Laws", "unsettled"]

OWN_ERROR_MS = 50
"""A message on its way, when true time is compared with what the server saw."""

READS = {"observe_pool", "all_workers", "read_pool", "read_worker", "lost_workers", "silent"}


class Broken(AssertionError):
    """A law that does not hold."""


class Laws:
    """Looks at the world after each script."""

    def __init__(self, world: World, town: Town) -> None:
        self.world, self.town = world, town
        self.fences = {"leader": 0, "placement": 0}
        self.heard: dict[str, float] = {}
        """True time at which each worker was last heard."""
        self.tail_lost = self.clock_went_back = False
        self.tail_lost_at = 0.0
        world.after_call.append(self.look)
        town.on_frozen = lambda worker: self.check_silence(worker, town.times.heartbeat_timeout)

    def demand_that(self, holds: bool, what: str) -> None:
        if not holds:
            raise Broken(f"at {self.world.time:.1f} ms: {what}")

    def look(self, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        if name in READS:
            return
        if name != "beat_worker":
            self.check_places()
            self.check_sizes()
            self.check_who_acts(name, arguments, answer)
        self.check_runs()
        if name in ("beat_worker", "register_worker") and answer[0] == "ok":
            self.heard[arguments[0]] = self.world.time
        elif name == "reap_worker" and answer[0] in ("done", "more"):
            self.check_reaping(*arguments[:4])

    def check_places(self) -> None:
        """Each agent is in exactly one place, and its record says which."""
        server = self.world.server
        places: dict[str, list[str]] = {}
        for name in server.pending:
            places.setdefault(name, []).append("")
        for worker, fields in server.workers.items():
            for name in fields["agents"]:
                places.setdefault(name, []).append(worker)
        self.demand_that(places.keys() == server.agents.keys(), "agents without a place, or places without an agent")
        for name, found in places.items():
            self.demand_that(found == [server.agents[name]["worker"]], f"{name} is in {found}")

    def check_sizes(self) -> None:
        """No worker holds more than it can, and there are no more workers than there may be."""
        server = self.world.server
        for worker, fields in server.workers.items():
            if fields["status"] in ("ready", "draining"):
                self.demand_that(len(fields["agents"]) <= fields["capacity"], f"{worker} holds too many")
        live = server.named("ordered", "starting", "ready", "draining")
        surge = 1 if server.named("draining") else 0
        if not self.tail_lost:
            most = server.settings["max_workers"] + 1
            self.demand_that(len(live) <= most, f"{len(live)} workers, {most - 1} and {surge} are allowed")

    def check_who_acts(self, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """What was accepted from leaders carries fences that never go back."""
        token = {
            "update_pool": arguments[:1], "place_pending": arguments[:1], "reserve_workers": arguments[:1],
            "reap_worker": arguments[2:3] if name == "reap_worker" and arguments[1] != "owner" else (),
        }.get(name, ())  # fmt: skip
        if token and answer[0] not in ("fenced", "gone"):
            fence = int(token[0].partition(" ")[0])
            if not (self.tail_lost and self.clock_went_back):
                self.demand_that(fence >= self.fences["leader"], f"{name} was accepted with an old fence")
            self.fences["leader"] = fence
        if name == "lead_pool" and answer[0] == "leads" and answer[2] == "1":
            fence = int(answer[1].partition(" ")[0])
            # What is forgotten and then given at an earlier time by the clock cannot be told apart.
            if not (self.tail_lost and self.clock_went_back):
                self.demand_that(fence > self.fences["leader"], "a fence was given twice")
                self.fences["leader"] = fence - 1

    def check_reaping(self, worker: str, proof: str, authority: str, timeout: int = 0) -> None:
        """Nobody who lives and can be heard is given up; nothing is given away while its process runs here."""
        process = self.town.workers.get(worker)
        if proof == "owner" and process:
            self.demand_that(not process.process.alive, f"{worker} was given away while its process runs")
        if proof == "stale":
            self.check_silence(worker, timeout)

    def check_silence(self, worker: str, timeout: float) -> None:
        """Silence counts only from when the server could hear again after it was away for long."""
        lost_beats = self.tail_lost and self.world.time < self.tail_lost_at + timeout
        if worker in self.heard and not lost_beats:
            world, gap = self.world, self.town.times.gap
            was_away = world.away_until - world.away_since > gap + OWN_ERROR_MS
            silent = world.time - max(self.heard[worker], world.away_until if was_away else 0)
            least = timeout - gap - OWN_ERROR_MS
            self.demand_that(silent >= least, f"{worker} was given up although it was heard {silent:.0f} ms ago")

    def check_runs(self) -> None:
        """What may not run twice does not: agents of a class that stops when it is cut off."""
        seen: dict[str, str] = {}
        if self.tail_lost:
            return
        for worker in self.town.living():
            if worker.process.paused:
                continue
            for name, held in worker.holds.items():
                if name.startswith("x") and held[1]:
                    self.demand_that(name not in seen, f"{name} runs on {seen.get(name)} and {worker.id}")
                    seen[name] = worker.id


def unsettled(world: World, town: Town, clients: list[Client], *, tail_lost: bool) -> list[str]:
    """Return what is not as it must be when everything had time to settle."""
    server, found = world.server, []
    wanted = {name for client in clients for name in client.promised}
    gone = {name for name, (status, _, _) in server.ended.items() if status == "failed"}
    for name in sorted(wanted - server.agents.keys() - gone):
        if not tail_lost:
            found.append(f"{name} was promised and is nowhere")
    for name in sorted(gone - town.killers):
        found.append(f"{name} was given up, but did no harm")
    for name in sorted(gone & town.killers):
        crashes = sum(note.endswith(f"{name} killed it") for note in world.noted)
        if crashes > 2 * CRASHES_MAX:  # alone, and before that in company
            found.append(f"{name} killed {crashes} workers")
    room = server.settings["max_workers"] * town.times.per_worker
    waiting = server.pending.keys() - town.killers  # those come back ever later
    if waiting and len(server.agents) <= room:
        found.append(f"{sorted(waiting)} still wait")
    for name, agent in server.agents.items():
        # What a worker said may be lost with the server's tail.
        if agent["worker"] and agent["status"] != "idle" and not tail_lost:
            found.append(f"{name} is {agent['status']}")
    living = {worker.id: worker for worker in town.living()}
    for id in living.keys() ^ server.workers.keys():
        found.append(f"{id} is {'not registered' if id in living else 'registered, but has no process'}")
    for id, worker in living.items():
        held = {name: inc for name, (inc, ready) in worker.holds.items() if ready}
        should = {n: server.agents[n]["incarnation"] for n in server.workers.get(id, {}).get("agents", ())}
        if held != should:
            found.append(f"{id} holds {held}, but shall hold {should}")
    for status in ("ordered", "starting", "draining", "lost"):
        found += [f"{id} is still {status}" for id in server.named(status)]
    ready, least = len(server.named("ready")), max(server.settings["min_workers"], server.pool["floor"])
    if ready < least:
        found.append(f"{ready} workers are ready, {least} are wanted")
    if not server.token("leader"):
        found.append("nobody leads")
    return found
