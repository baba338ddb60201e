"""Masters, workers and clients in many worlds in which everything goes wrong, each from its seed.

What breaks names its seed: `AGENTPOOL_SIM_SEED=<seed> pytest tests/simulation` plays it again, exactly.
`AGENTPOOL_SIM_SEEDS=5000` plays so many.
"""

from collections.abc import Callable
from typing import Any

import pytest
from simulation.actors import Policy, Town
from simulation.laws import Broken, Laws
from simulation.scenario import Run, run_seed, seeds
from simulation.world import Call, Faults, Process, World

from agentpool.policy.actions import DrainWorker, StartWorkers
from agentpool.policy.liveness import Verdict
from agentpool.policy.reconcile import plan_growth, threshold
from agentpool_worker.plan import StartAgent, Step, diff

PARTS = 4
"""The seeds are shared out among so many tests, which may run at the same time."""


@pytest.mark.parametrize("part", range(PARTS))
def test_every_world_keeps_the_laws_and_comes_to_rest(part: int) -> None:
    for seed in seeds(120)[part::PARTS]:
        run_seed(seed)


def test_a_seed_replays_exactly() -> None:
    first, second = run_seed(7), run_seed(7)
    assert first.world.noted == second.world.noted
    assert first.world.calls == second.world.calls


# -- without faults ---------------------------------------------------------------------------------------------


class Calm:
    """A pool without faults: so many agents are wanted at once, and no more happens."""

    def __init__(self, agents: int, policy: Policy | None = None, *, boots: bool = True, **times: Any) -> None:
        self.world = World(1, Faults(), min_workers=1, max_workers=6)
        self.town = Town(self.world, 2, policy, **{"boot_ms": 900, **times})
        self.laws = Laws(self.world, self.town)
        self.town.boot_fails = 0.0 if boots else 1.0
        self.changes: list[tuple[float, str]] = []
        self.world.after_call.append(self._note)
        client = Process(self.world, "client", "c")
        for number in range(agents):
            client.run(self._spawn(f"a{number}"))
        self.world.run_until(40_000)

    def _spawn(self, name: str) -> Any:
        yield Call("place_agent", name, f"o{name}")

    def _note(self, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        if name == "reserve_workers" and answer[0] == "ok":
            self.changes += [(self.world.time, "order")] * (len(answer) - 1)
        elif name == "drain_worker" and answer[0] == "ok":
            self.changes.append((self.world.time, "drain"))

    @property
    def ordered(self) -> int:
        return sum(what == "order" for _, what in self.changes)


def check_starts(agents: int, workers: int, policy: Policy | None = None) -> None:
    calm = Calm(agents, policy)
    assert calm.ordered == workers
    assert len(calm.world.server.named("ready")) == workers


def check_calm(agents: int, policy: Policy | None = None) -> None:
    calm = Calm(agents, policy, up=0.8, down=0.4, cooldown=1000)
    late = [change for change in calm.changes if change[0] > 20_000]
    assert late == [], "nothing is wanted any more than before"
    assert calm.ordered <= -(-agents // 4) + 2


def check_boots(policy: Policy | None = None) -> None:
    assert 5 < Calm(1, policy, boots=False).ordered < 30


@pytest.mark.parametrize(("agents", "workers"), [(0, 1), (1, 1), (4, 1), (5, 2), (9, 3), (24, 6), (40, 6)])
def test_a_slow_start_is_not_started_twice(agents: int, workers: int) -> None:
    check_starts(agents, workers)


@pytest.mark.parametrize("agents", range(25))
def test_scaling_does_not_flap(agents: int) -> None:
    check_calm(agents)


def test_boots_that_fail_are_tried_ever_later() -> None:
    check_boots()


# -- that it can fail -------------------------------------------------------------------------------------------


def _only_starts(view: Any, held: Any) -> list[Any]:
    return [action for action in diff(view, held) if isinstance(action, StartAgent)]


def _ignores_gaps(applied: int, version: int) -> Step:
    return Step.OBEY if version > applied else Step.IGNORE


def _drains_all(limits: Any, info: Any, view: Any, workers: Any, *, step: int = 0) -> list[Any]:
    return [DrainWorker(worker.process_id, "whim") for worker in workers]


BROKEN: dict[str, Policy] = {
    "nothing grows": Policy(plan_growth=lambda *_, **__: []),
    "what shall not be here stays": Policy(diff=_only_starts),
    "missed commands are not noticed": Policy(next_step=_ignores_gaps),
    "everyone is frozen": Policy(judge=lambda *_: Verdict.FROZEN),
    "no hold after a gap": Policy(hold_ms=0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_decision_is_caught(name: str) -> None:
    with pytest.raises(Broken):
        for seed in range(100):
            run_seed(seed, BROKEN[name], ("clock", "server away", "kill worker"))


def _forgets_starting(limits: Any, info: Any, view: Any, **more: Any) -> list[Any]:
    missing = -(-(view.due - view.free_slots) // limits.agents_per_worker)
    return [StartWorkers(missing)] if missing > 0 else plan_growth(limits, info, view, **more)


def _has_no_middle(limits: Any, workers: Any, floor: int, since_ms: int) -> int:
    return threshold(limits, workers, floor, since_ms) or (-1 if len(workers) > 1 else 0)


def _never_waits(*_: Any, **__: Any) -> float:
    return 0.0


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_starts(9, 3, Policy(plan_growth=_forgets_starting)),
        lambda: check_calm(9, Policy(threshold=_has_no_middle)),
        lambda: check_calm(9, Policy(plan_shrinking=_drains_all)),
        lambda: check_boots(Policy(next_restart=_never_waits)),
    ],
    ids=["slow starts are forgotten", "up and down", "all are drained", "boots without a pause"],
)
def test_a_broken_size_is_caught(check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        check()


def test_what_breaks_names_its_seed() -> None:
    with pytest.raises(Broken, match="AGENTPOOL_SIM_SEED=0: "):
        run_seed(0, Policy(plan_growth=lambda *_, **__: []))
    assert Run(0).world.seed == 0
