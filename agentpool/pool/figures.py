"""What a pool counts while it runs: sums, and durations in fixed buckets."""

from bisect import bisect_left

import msgspec

__all__ = ["Counters", "Durations", "Histogram", "Tally"]

BOUNDS = tuple(1e-6 * 1.25**step for step in range(100))
"""Upper bounds of the buckets in s, 1 µs to an hour: a percentile read from them is at most 25 % too high."""


class Tally:
    """What is counted on the way of requests. No struct, as adding to a plain object costs half."""

    __slots__ = ("acquired", "errors", "refused", "released", "requests", "timed_out")

    def __init__(self) -> None:
        self.requests = self.errors = self.acquired = self.released = self.refused = self.timed_out = 0


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """All sums of a pool."""

    requests: int = 0
    errors: int = 0
    acquired: int = 0
    released: int = 0
    refused: int = 0
    timed_out: int = 0
    start_failures: int = 0
    spawned: int = 0
    recycles: int = 0
    terminated: int = 0


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """Times in s. Percentiles are upper bounds of histogram buckets, at most 25 % above the true value."""

    count: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


class Histogram:
    """Durations in fixed buckets; `at_once` counts those of length zero without looking for a bucket."""

    __slots__ = ("_buckets", "_max", "_sum", "at_once")

    def __init__(self) -> None:
        self.at_once = 0
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._sum = self._max = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds
        if seconds > self._max:
            self._max = seconds

    def read(self) -> Durations:
        """Return count, mean and percentiles."""
        count = self.at_once + sum(self._buckets)
        p50, p95, p99 = (self._quantile(part * count) for part in (0.50, 0.95, 0.99))
        mean = self._sum / count if count else 0.0
        return Durations(count=count, mean_s=mean, p50_s=p50, p95_s=p95, p99_s=p99, max_s=self._max)

    def _quantile(self, rank: float) -> float:
        seen = float(self.at_once)
        if rank <= seen:
            return 0.0
        for bucket, count in enumerate(self._buckets):
            seen += count
            if seen >= rank:
                return min(BOUNDS[bucket], self._max) if bucket < len(BOUNDS) else self._max
        return self._max
