"""What the append-only file costs: the rate in bulk with it, synced each second, against none at all, in turns."""

from bench.figures import extent, median, show
from bench.running import RunningMaster, wait_for
from bench.tasks.own import Own, own_master
from bench.tasks.sizes import Sizes

__all__ = ["measure"]


def measure(sizes: Sizes) -> tuple[tuple[float, ...], str]:
    """Return the share of the rate that remains, in percent."""
    pairs = []
    with own_master() as master:
        for number in range(sizes.rounds + 1):
            order = (True, False) if number % 2 else (False, True)  # who is first is no advantage
            rates = {with_file: _rate(master, with_file, sizes) for with_file in order}
            pairs.append((rates[True], rates[False]))
    del pairs[0]  # in which everything is warmed up
    shares = [100 * with_file / without for with_file, without in pairs]
    medians = [median(pair[i] for pair in pairs) for i in (0, 1)]
    return (median(shares),), f"{show(medians, '/s')}; {extent(shares, '%')}"


def _rate(master: RunningMaster, with_file: bool, sizes: Sizes) -> float:
    server = master.redis
    server.config_set("appendonly", "yes" if with_file else "no")
    wait_for(lambda: _is_settled(server.info("persistence"), with_file), "the append-only file is rewritten")
    rate: float = Own(master.url).measure(sizes.plan(bulk_only=True))["bulk"]
    return rate


def _is_settled(facts: dict[str, int], with_file: bool) -> bool:
    rewriting = facts["aof_rewrite_in_progress"] or facts["aof_rewrite_scheduled"]
    return facts["aof_enabled"] == with_file and not rewriting
