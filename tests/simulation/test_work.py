"""Tasks in many worlds: each ends once, tries are bounded, neighbours of what kills are not blamed, shares are fair."""

import random

import pytest
from simulation.laws import Broken
from simulation.scenario import seeds
from simulation.work import ALONE_MAX, Job, Office, WorkPolicy
from simulation.world import Faults

from agentpool.policy.fair_queue import FairQueue

KINDS = ["well"] * 12 + ["raises", "kills", "breaks"]
EXPECTED = {"well": "done", "raises": "dead", "kills": "worker_lost", "breaks": "worker_lost"}


def play(seed: int, policy: WorkPolicy | None = None) -> None:
    """Some jobs of all kinds, workers that are killed from outside and messages that are lost; then rest."""
    chance = random.Random(f"work {seed}")
    faults = Faults(
        lost=chance.choice([0, 0.05, 0.2]), twice=chance.choice([0, 0.1]), late=chance.choice([0, 0.05]), late_ms=300
    )
    office = Office(seed, faults, {"t1": 1.0, "t2": 2.0}, policy)
    world, server = office.world, office.server
    jobs = [
        Job(f"p/{number}", chance.choice(["t1", "t2"]), chance.choice(KINDS), chance.choice([1, 20, 80]), outcomes=[])
        for number in range(chance.choice([5, 25]))
    ]
    office.open(chance.choice([1, 2, 3]))
    server.submit(jobs)

    def kill() -> None:
        if world.time < 800 and office.living:
            chance.choice(list(office.living.values())).process.end("killed")
            world.after(chance.expovariate(1 / 150), kill)

    world.after(chance.choice([30, 5000]), kill)
    world.after(1000, lambda: setattr(world, "faults", Faults()))
    world.run_until(1000)
    while world.time < 6_000 and not all(job.outcomes for job in jobs):
        world.run_until(world.time + 500)
    world.run_until(world.time + 500)
    for job in jobs:
        check(job)


def check(job: Job) -> None:
    if job.outcomes != [EXPECTED[job.kind]]:
        raise Broken(f"{job.id}, which {job.kind}, ended as {job.outcomes}")
    if job.kind == "raises" and job.attempts != 3:
        raise Broken(f"{job.id} had {job.attempts} attempts")
    if job.kind in ("kills", "breaks") and job.alone != ALONE_MAX:
        raise Broken(f"{job.id} was given up after {job.alone} deaths alone")


def run(seed: int, policy: WorkPolicy | None = None) -> None:
    try:
        play(seed, policy)
    except Exception as error:
        raise Broken(f"AGENTPOOL_SIM_SEED={seed}: {error}") from error


def test_each_task_ends_once_as_it_must() -> None:
    for seed in seeds(50):
        run(seed)


def shares(seed: int, policy: WorkPolicy | None = None) -> tuple[float, float]:
    """Let tenants that have more than enough to do share some workers; return the least and the most slot time that one
    got, by its weight, and how much longer than a task of the longest kind that is.
    """
    chance = random.Random(f"shares {seed}")
    weights = {f"t{number}": chance.choice([1.0, 2.0, 4.0]) for number in range(chance.choice([2, 3, 5]))}
    office = Office(seed, Faults(), weights, policy)
    workers = chance.choice([1, 2])
    office.open(workers)
    lengths = {tenant: chance.choice([5.0, 20.0, 50.0]) for tenant in weights}
    office.server.submit(
        [
            Job(f"p/{number}-{tenant}", tenant, "well", lengths[tenant], outcomes=[])
            for tenant in weights
            for number in range(int(6400 / lengths[tenant]))
        ]
    )
    office.world.run_until(400)
    got = [ms / weights[tenant] for tenant, ms in office.server.served.items()]
    assert all(office.server.queues.values()), "some tenant had too little to do"
    return max(got) - min(got), 2 * max(lengths.values())


def test_shares_are_fair() -> None:
    for seed in seeds(20):
        apart, allowed = shares(seed)
        assert apart <= allowed, f"AGENTPOOL_SIM_SEED={seed}: tenants are {apart:.0f} ms apart"


# -- that it can fail -------------------------------------------------------------------------------------------


class FirstComes(FairQueue):
    """Whoever came first goes on being served."""

    def serve(self, tenant: str, ms: float, weight: float) -> None:
        """Charge nothing."""


class NoWeights(FairQueue):
    """All are equal."""

    def serve(self, tenant: str, ms: float, weight: float) -> None:
        super().serve(tenant, ms, 1.0)


@pytest.mark.parametrize("queue", [FirstComes, NoWeights])
def test_an_unfair_queue_is_caught(queue: type[FairQueue]) -> None:
    assert any(apart > allowed for apart, allowed in (shares(seed, WorkPolicy(queue=queue)) for seed in range(20)))


@pytest.mark.parametrize(
    "policy",
    [
        WorkPolicy(next_retry=lambda *_: 0.01),
        WorkPolicy(next_retry=lambda *_: None),
        WorkPolicy(blame=lambda begun, *_, **__: {}),
    ],
    ids=["tries for ever", "never tries again", "nobody is blamed"],
)
def test_a_broken_decision_is_caught(policy: WorkPolicy) -> None:
    with pytest.raises(Broken):
        for seed in range(30):
            run(seed, policy)
