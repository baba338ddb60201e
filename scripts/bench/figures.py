"""Figures: what was measured, what it must be, and how that is shown."""

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Figure", "extent", "median", "quantile", "show", "spread", "table"]

COLUMNS = ("what", "measured", "must", "aim", "floor or peer, same run", "pass")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. Each of `values` must stay below its `must`, or with `at_least` reach it; without one the
    line only informs. No values: it could not be measured, and `floor` says why.
    """

    what: str
    unit: str
    values: tuple[float, ...]
    must: tuple[float, ...] = ()
    aim: tuple[float, ...] = ()
    floor: str = ""
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Tell whether every value is what it must be."""
        return not self.must or self._keeps(self.must)

    @property
    def verdict(self) -> str:
        """Say how good it is: `aim`, `must`, `MISSED`, or '' when nothing is asked."""
        if not self.must:
            return ""
        if self._keeps(self.aim):
            return "aim"
        return "must" if self.passed else "MISSED"

    def _keeps(self, bounds: tuple[float, ...]) -> bool:
        pairs = zip(self.values, bounds, strict=bool(self.values))
        return bool(self.values) and all(value >= bound if self.at_least else value < bound for value, bound in pairs)

    def row(self) -> tuple[str, ...]:
        """Return the cells of its line."""
        sign = "≥" if self.at_least else "<"
        return (
            self.what,
            show(self.values, self.unit) if self.values else "—",
            f"{sign} {_bounds(self.must)} {self.unit}" if self.must else "",
            f"{sign} {_bounds(self.aim)} {self.unit}" if self.aim else "",
            self.floor,
            self.verdict,
        )


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as a Markdown table that is aligned for reading, too."""
    rows = [COLUMNS, *(figure.row() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def show(values: Iterable[float], unit: str) -> str:
    """Return numbers with three digits or so, and their unit."""
    return " / ".join(_number(value) for value in values) + f" {unit}"


def extent(values: Sequence[float], unit: str) -> str:
    """Return how many values there are, the least and the greatest, in words."""
    return f"of {len(values)}: {show((min(values), max(values)), unit)}" if len(values) > 1 else "of 1"


def spread(values: Sequence[float], unit: str) -> str:
    """Return median and 99th percentile in words."""
    return show((median(values), quantile(values, 0.99)), unit)


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest of the values that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bounds(bounds: Iterable[float]) -> str:
    return " / ".join(f"{bound:,g}" for bound in dict.fromkeys(bounds))
