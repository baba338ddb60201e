"""How much there was of something within the last minute."""

from collections import OrderedDict

from agentpool.clock import monotonic

__all__ = ["Window"]

SECONDS = 60
LEAST_WAIT_MS = 100


class Window:
    """Sums by second."""

    def __init__(self) -> None:
        self._sums: OrderedDict[int, int] = OrderedDict()

    def __bool__(self) -> bool:
        self._forget()
        return bool(self._sums)

    def add(self, amount: int) -> None:
        """Count an amount now; a negative one takes back."""
        if amount:
            self._forget()
            second = int(monotonic())
            self._sums[second] = self._sums.get(second, 0) + amount

    def total(self) -> int:
        """Return the sum of the last minute."""
        self._forget()
        return max(0, sum(self._sums.values()))

    def wait_ms(self, limit: float, amount: float) -> int:
        """Return the ms until `amount` more fit below `limit`; 0 when they do now."""
        left, wait, now = self.total(), 0.0, monotonic()
        if left + amount <= limit:
            return 0
        for second, sum_ in self._sums.items():
            if left + amount > limit:
                left -= sum_
                wait = 1000 * (second + SECONDS - now)
        return max(LEAST_WAIT_MS, round(wait))

    def _forget(self) -> None:
        last = int(monotonic()) - SECONDS
        while self._sums and next(iter(self._sums)) <= last:
            self._sums.popitem(last=False)
