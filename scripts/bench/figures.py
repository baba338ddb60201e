"""Figures: what was measured, what it must be, and how that is shown."""

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Figure", "median", "quantile", "show", "spread", "table"]

COLUMNS = ("what", "measured", "must", "aim", "floor or peer, same run", "pass")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. Each of `values` must stay below its `must`; without one the line only informs."""

    what: str
    unit: str
    values: tuple[float, ...]
    must: tuple[float, ...] = ()
    aim: tuple[float, ...] = ()
    floor: str = ""

    @property
    def passed(self) -> bool:
        """Tell whether every value is below what it must be."""
        return all(value < bound for value, bound in zip(self.values, self.must, strict=False))

    @property
    def verdict(self) -> str:
        """Say how good it is: `aim`, `must`, `MISSED`, or '' when nothing is asked."""
        if not self.must:
            return ""
        if all(value < bound for value, bound in zip(self.values, self.aim, strict=True)):
            return "aim"
        return "must" if self.passed else "MISSED"

    def row(self) -> tuple[str, ...]:
        """Return the cells of its line."""
        return (
            self.what,
            show(self.values, self.unit),
            f"< {_bounds(self.must)} {self.unit}" if self.must else "",
            f"< {_bounds(self.aim)} {self.unit}" if self.aim else "",
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
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bounds(bounds: Iterable[float]) -> str:
    return " / ".join(f"{bound:g}" for bound in dict.fromkeys(bounds))
