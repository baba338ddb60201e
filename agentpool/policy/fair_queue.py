"""Whose turn it is among tenants: start-time fair queueing, as `store/lua/lib/tenants.lua` does it too.

Each tenant has a finish tag: the virtual time up to which it was served. It grows by the slot time of what the tenant
takes, divided by its weight; what ran longer or shorter than estimated is corrected when it ends. The virtual time is
the largest tag at which someone was served. Whoever comes starts at the later of the two, so leaving and returning
gains nothing. The least tag is next.
"""

__all__ = ["ESTIMATE_MS", "URGENT_TURNS", "FairQueue", "blend"]

ESTIMATE_MS = 10.0
"""Slot time of a task of which nothing is known."""
URGENT_TURNS = 8
"""Of so many claims, urgent tasks leave one to the others, while there are any."""
SLACK = 64


def blend(mean: float | None, value: float) -> float:
    """Weigh a new value into a mean: it counts a tenth."""
    return value if mean is None else mean + (value - mean) / 10


class FairQueue:
    """Tags of tenants; those that wait have joined. Times are in ms."""

    def __init__(self) -> None:
        self.virtual_time = 0.0
        self._finish: dict[str, float] = {}
        self._tags: dict[str, float] = {}

    def join(self, tenant: str) -> None:
        """The tenant waits, unless it does already."""
        if tenant not in self._tags:
            self._tags[tenant] = max(self.virtual_time, self._finish.get(tenant, 0.0))

    def leave(self, tenant: str) -> None:
        """The tenant does not wait any more."""
        self._tags.pop(tenant, None)

    def tag(self, tenant: str) -> float:
        """Return the tag of a tenant that waits."""
        return self._tags[tenant]

    def waits(self, tenant: str) -> bool:
        """Tell whether a tenant has joined."""
        return tenant in self._tags

    def serve(self, tenant: str, ms: float, weight: float) -> None:
        """A tenant that waits is given so much slot time."""
        self.virtual_time = max(self.virtual_time, self._tags[tenant])
        self._retag(tenant, self.virtual_time + ms / weight)
        self._forget()

    def correct(self, tenant: str, ms: float, weight: float) -> None:
        """A tenant took so much more slot time than it was charged, or less."""
        self._retag(tenant, self._finish.get(tenant, self.virtual_time) + ms / weight)

    def served(self) -> list[str]:
        """Return the tenants that are ahead of the virtual time, or level with it."""
        return [tenant for tenant, finish in self._finish.items() if finish >= self.virtual_time]

    def _retag(self, tenant: str, tag: float) -> None:
        self._finish[tenant] = tag
        if tenant in self._tags:
            self._tags[tenant] = tag

    def _forget(self) -> None:
        """Forget those that would start at the virtual time anyway, now and then."""
        if len(self._finish) > 2 * len(self._tags) + SLACK:
            self._finish = {tenant: self._finish[tenant] for tenant in self.served()}
