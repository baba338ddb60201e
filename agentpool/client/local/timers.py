"""What shall happen later in a local pool."""

import asyncio
import contextvars
from collections.abc import Callable

__all__ = ["Timers"]


class Timers:
    """Timers by what they are for and whom: one each. What they call runs in the given context."""

    def __init__(self, context: contextvars.Context) -> None:
        self._context = context
        self._handles: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._counts: dict[str, int] = {}

    def count(self, kind: str) -> int:
        """Return how many timers of a kind are set."""
        return self._counts.get(kind, 0)

    def is_set(self, kind: str, id: str) -> bool:
        """Tell whether there is such a timer."""
        return (kind, id) in self._handles

    def set(self, kind: str, id: str, delay: float, call: Callable[[], object]) -> None:
        """Call `call()` in so many s; an earlier timer of the same kind and id is cancelled."""
        self.cancel(kind, id)

        def fire() -> None:
            self._take_out(kind, id)
            call()

        loop = asyncio.get_running_loop()
        self._handles[kind, id] = loop.call_later(delay, fire, context=self._context.copy())
        self._counts[kind] = self.count(kind) + 1

    def cancel(self, kind: str, id: str) -> bool:
        """Cancel a timer; False when there is none."""
        handle = self._take_out(kind, id)
        if handle:
            handle.cancel()
        return handle is not None

    def close(self) -> None:
        """Cancel all."""
        for kind, id in list(self._handles):
            self.cancel(kind, id)

    def _take_out(self, kind: str, id: str) -> asyncio.TimerHandle | None:
        handle = self._handles.pop((kind, id), None)
        if handle:
            self._counts[kind] -= 1
        return handle
