"""One seed: how many hosts and clients, which faults, for how long; then rest, and all must be as it shall be."""

import os
import random
from typing import Any

from simulation.actors import Client, Policy, Town
from simulation.laws import Broken, Laws, unsettled
from simulation.world import Faults, World

__all__ = ["KINDS", "run_seed", "seeds"]

FAULTY_MS = 12_000
REST_MS = 40_000
FSYNC_MS = 1000
KINDS = (
    "kill worker", "kill master", "pause worker", "pause master", "cut host", "server away", "server slow",
    "clock", "lose tail", "kill client", "scale", "kill host",
)  # fmt: skip


def seeds(count: int) -> list[int]:
    """Return the seeds to run: one that was given by AGENTPOOL_SIM_SEED, or the first so many of a series, which
    AGENTPOOL_SIM_SEEDS makes longer.
    """
    if given := os.environ.get("AGENTPOOL_SIM_SEED"):
        return [int(given)]
    return list(range(int(os.environ.get("AGENTPOOL_SIM_SEEDS", count))))


class Run:
    """One world from its seed."""

    def __init__(self, seed: int, policy: Policy | None = None, kinds: tuple[str, ...] = KINDS, **more: Any) -> None:
        self.random = chance = random.Random(f"faults {seed}")
        some = tuple(kind for kind in kinds if chance.random() < 0.5)
        faults = Faults(
            lost=chance.choice([0, 0, 0.02, 0.15]), twice=chance.choice([0, 0, 0.1]),
            late=chance.choice([0, 0.01, 0.1]), every_ms=chance.choice([300, 1000, 3000]), kinds=some,
        )  # fmt: skip
        settings = {"min_workers": chance.choice([0, 1, 2]), "max_workers": chance.choice([3, 5])}
        self.world = World(seed, faults, **settings)
        times = {"up": chance.choice([1.0, 1.0, 0.8]), **more}
        self.town = Town(self.world, chance.choice([1, 2, 3]), policy, **times)
        self.laws = Laws(self.world, self.town)
        most = settings["max_workers"] * self.town.times.per_worker
        count = chance.choice([1, 2])
        self.clients = [Client(self.town, f"c{n}", most // (count + 1)) for n in range(count)]
        if chance.random() < 0.2:
            self.town.boot_fails = 0.3
        if chance.random() < 0.2:
            self.town.killers = {f"a{number:04d}" for number in range(3, 60, 19)}

    def play(self) -> None:
        world = self.world
        world.after(0, self._save)
        world.after(0, self._harm)
        world.run_until(FAULTY_MS)
        self._heal()
        found = ["?"]
        while found and world.time < FAULTY_MS + REST_MS:
            world.run_until(world.time + REST_MS / 10)
            found = unsettled(world, self.town, self.clients, tail_lost=self.laws.tail_lost)
        if found:
            raise Broken("after a rest: " + "; ".join(found))

    def _save(self) -> None:
        if "lose tail" in self.world.faults.kinds and self.world.time < FAULTY_MS:
            self.world.saved = self.world.server.saved()
            self.world.after(FSYNC_MS, self._save)

    # -- faults -------------------------------------------------------------------------------------------------

    def _harm(self) -> None:
        faults = self.world.faults
        if self.world.time >= FAULTY_MS:
            return
        if faults.kinds and self.world.time > 0:
            self._do(self.random.choice(faults.kinds))
        self.world.after(self.random.expovariate(1 / faults.every_ms), self._harm)

    def _do(self, kind: str) -> None:
        world, chance, time = self.world, self.random, self.world.time
        world.note(kind)
        workers = list(self.town.living())
        masters = [master for master in self.town.masters.values() if master.process.alive]
        host = chance.choice(sorted(self.town.masters))
        match kind:
            case "kill worker" if workers:
                chance.choice(workers).process.end("killed")
            case "pause worker" if workers:
                chance.choice(workers).process.pause(chance.choice([500, 3000, 9000]))
            case "kill master" if masters:
                self._kill_master(chance.choice(masters).name)
            case "pause master" if masters:
                chance.choice(masters).process.pause(chance.choice([500, 3000, 9000]))
            case "kill host":
                for worker in [worker for worker in workers if worker.process.host == host]:
                    worker.process.end("its host is gone")
                self._kill_master(host)
            case "cut host":
                world.cut_off[host] = time + chance.choice([500, 3000, 9000])
            case "server away":
                world.go_away(chance.choice([200, 3000, 12_000]))
            case "server slow":
                world.slow_until = time + 1500
            case "clock":
                jump = chance.choice([-900, 700, 3000, 60_000, 3_600_000])
                world.skew += jump
                self.laws.clock_went_back |= jump < 0
            case "lose tail" if world.saved:
                self.laws.tail_lost, self.laws.tail_lost_at = True, time
                world.go_away(300)
                world.after(250, lambda: world.server.lose_tail(world.saved))
                # Every subscription is new then, and each begins with a look at what shall be.
                world.after(320, self._resubscribe)
            case "kill client":
                chance.choice(self.clients).process.pause(2000)
            case "scale":
                world.server.now = int(world.skew + time)
                world.server.scale_pool(chance.randrange(world.server.settings["max_workers"] + 1))

    def _kill_master(self, name: str) -> None:
        master = self.town.masters[name]
        if master.process.alive:
            master.process.end("killed")
            self.world.after(self.random.choice([100, 2000]), lambda: self.town.start_master(name))

    def _resubscribe(self) -> None:
        for worker in self.town.living():
            worker.resync()

    def _heal(self) -> None:
        self.world.faults = Faults()
        self.world.cut_off.clear()
        self.world.away_until = min(self.world.away_until, self.world.time)
        self.world.slow_until = 0
        self.town.boot_fails = 0.0
        for client in self.clients:
            client.stopped = True


def run_seed(seed: int, policy: Policy | None = None, kinds: tuple[str, ...] = KINDS, **more: Any) -> Run:
    """Play one seed; what breaks names it, with the last that happened."""
    run = Run(seed, policy, kinds, **more)
    try:
        run.play()
    except Exception as error:
        story = "\n".join(run.world.noted[-40:])
        raise Broken(f"AGENTPOOL_SIM_SEED={seed}: {error!r}\nthe last that happened:\n{story}") from error
    return run
