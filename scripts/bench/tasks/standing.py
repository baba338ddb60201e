"""How agentpool stands to its peers: lines of the table from what all of them came to."""

from collections.abc import Mapping

from bench.figures import Figure, extent, median, show
from bench.tasks.comparing import OWN, Measured
from bench.tasks.sizes import Sizes

__all__ = ["figures_of"]

Results = Mapping[str, Measured]


def figures_of(results: Results, sizes: Sizes) -> list[Figure]:
    """Return agentpool's lines, each with its standing to the best peer and a line for every peer."""
    bulk = f"bulk, first handed in → last result: {_counts(sizes, sizes.tasks)}"
    single = f"single, handed in one by one by 100 callers: {_counts(sizes, sizes.tasks // 2)}"
    return [
        *_rates(results, "bulk", bulk, (15_000, 5), (30_000, 10)),
        *_rates(results, "single", single, (5000, 2), (12_000, 5)),
        *_calls(results, f"idle, one call after the other, {sizes.calls}: p50 / p99"),
    ]


def _counts(sizes: Sizes, tasks: int) -> str:
    return f"{tasks:,} tasks, peers {sizes.of_peer(tasks):,}"


def _rates(
    results: Results, field: str, what: str, must: tuple[float, float], aim: tuple[float, float]
) -> list[Figure]:
    peers = {name: rate for name, rate in _medians(results, field).items() if name != OWN}
    figures = []
    if own := results.get(OWN):
        rates = getattr(own, field)
        rate = (median(rates),) if rates else ()
        note = own.problem or extent(rates, "/s")
        figures.append(Figure(what=what, unit="/s", values=rate, must=must[:1], aim=aim[:1], floor=note, at_least=True))
        if peers:
            fastest = max(peers, key=peers.__getitem__)
            figures.append(
                Figure(
                    what=f"{field}, times the fastest peer",
                    unit="×",
                    values=tuple(value / peers[fastest] for value in rate),
                    must=must[1:],
                    aim=aim[1:],
                    floor=f"{results[fastest].title} {show([peers[fastest]], '/s')}",
                    at_least=True,
                )
            )
    with_notes = field == "bulk"
    lines = [
        _line(measured, field, "/s", (peers[name],) if name in peers else (), with_notes)
        for name, measured in results.items()
        if name != OWN
    ]
    return figures + sorted(lines, key=lambda line: line.values, reverse=True)


def _calls(results: Results, what: str) -> list[Figure]:
    halves, nineties = _medians(results, "idle_p50"), _medians(results, "idle_p99")
    times = {name: (half, nineties[name]) for name, half in halves.items()}
    peers = {name: pair for name, pair in times.items() if name != OWN}
    figures = []
    if own := results.get(OWN):
        pair = times.get(OWN, ())
        figures.append(Figure(what=what, unit="ms", values=pair, must=(2, 5), aim=(1, 3), floor=own.problem))
        if peers:
            best = tuple(min(peers, key=lambda name: peers[name][i]) for i in (0, 1))
            bounds = tuple(peers[name][i] for i, name in enumerate(best))
            figures.append(
                Figure(
                    what="idle, times the best peer's p50 / p99",
                    unit="×",
                    values=tuple(value / bound for value, bound in zip(pair, bounds, strict=bool(pair))),
                    must=(1, 1),
                    aim=(1, 1),
                    floor=f"{' / '.join(results[name].title for name in best)} {show(bounds, 'ms')}",
                )
            )
    lines = [
        _line(measured, "idle", "ms", peers.get(name, ()), with_note=False)
        for name, measured in results.items()
        if name != OWN
    ]
    return figures + sorted(lines, key=lambda line: (not line.values, line.values))


def _medians(results: Results, field: str) -> dict[str, float]:
    return {name: median(values) for name, measured in results.items() if (values := getattr(measured, field))}


def _line(measured: Measured, field: str, unit: str, values: tuple[float, ...], with_note: bool) -> Figure:
    version = next(iter(measured.versions.values()), "")
    note = "; ".join(filter(None, (measured.settings if with_note else "", measured.problem)))
    return Figure(what=f"· {field}, {measured.title} {version}".rstrip(), unit=unit, values=values, floor=note)
