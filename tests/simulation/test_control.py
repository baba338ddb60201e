"""Masters, workers and clients in thousands of worlds in which everything goes wrong, each from its seed."""

from simulation.scenario import run_seed, seeds


def test_the_control_plane_keeps_its_promises() -> None:
    for seed in seeds(600):
        run_seed(seed)
