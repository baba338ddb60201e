"""How much is measured: the full run, a quick look, and what the test of the benchmarks itself needs."""

import msgspec

__all__ = ["FULL", "QUICK", "TINY", "Sizes"]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """`runs` is how often a whole measurement is repeated; its median counts. Times are in seconds."""

    runs: int = 5
    starts: int = 30
    """Workers started one after the other."""
    crowd: int = 100
    """Workers started at once."""
    idlers: int = 128
    """Workers that only beat."""
    tasks_each: int = 200
    """Tasks that each of them does first."""
    idle_s: float = 60.0
    beats_s: float = 20.0
    """How long the bare beats are watched."""
    spawns: int = 300
    """Spawns in one run."""
    kills: int = 20
    """Workers killed one after the other."""
    placements: int = 800
    """Calls of the placement script in one run, on each server."""
    many_workers: int = 10_000
    agents_each: int = 10
    """Agents on each of them, and on each of the few."""
    floor_rounds: int = 20
    pause_s: float = 0.2
    """Between two rounds, so that the end of one is not in the next."""


FULL = Sizes()
QUICK = Sizes(
    runs=2,
    starts=10,
    tasks_each=20,
    idle_s=10.0,
    beats_s=4.0,
    spawns=100,
    kills=6,
    placements=200,
    many_workers=3000,
    floor_rounds=8,
)
TINY = Sizes(
    runs=1,
    starts=2,
    crowd=3,
    idlers=2,
    tasks_each=2,
    idle_s=0.2,
    beats_s=0.2,
    spawns=5,
    kills=1,
    placements=20,
    many_workers=20,
    agents_each=2,
    floor_rounds=1,
    pause_s=0.02,
)
