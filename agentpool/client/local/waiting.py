"""Tasks without an outcome, and where those that do not run wait: for their time, in a mailbox, in a lane.

A mailbox is first in, first out; a task that was given back keeps its place.
"""

import asyncio
from collections.abc import Callable

import msgspec

from agentpool.client.local.lanes import BATCH, NORMAL, Lanes
from agentpool.client.local.queue import TaskQueue
from agentpool.client.local.tenants import LocalTenants, Tenant
from agentpool.client.local.timers import Timers
from agentpool.client.local.trails import Trail
from agentpool.client.requests import Request
from agentpool.clock import monotonic
from agentpool.hosting import Run
from agentpool.protocol.tasks import Outcome

__all__ = ["Lease", "LocalTask", "Waiting"]

DELAY = "start"
"""The timer of a task that may not begin yet."""


class Lease(msgspec.Struct, frozen=True):
    """A task runs, on its tenant's account: what it was charged in advance."""

    tenant: Tenant
    ms: float = 0.0
    tokens: int = 0


class LocalTask:
    """A task without an outcome. `keep`: someone may ask for its outcome later. `nested`: another task waits for it."""

    __slots__ = (
        "attempts", "cancelled", "children", "errors", "future", "keep", "lease", "level", "nested", "rank",
        "request", "run", "starts", "tenant", "trail", "waits",
    )  # fmt: skip

    def __init__(self, request: Request, tenant: str, *, keep: bool, nested: bool) -> None:
        self.request, self.tenant, self.keep, self.nested = request, tenant, keep, nested
        self.level = request.lane.partition("+")[0]
        self.rank: float | None = None
        self.attempts = self.starts = 0
        """Attempts that counted, and those for which no agent could be started."""
        self.errors: dict[str, msgspec.Raw] = {}
        self.run: Run | None = None
        self.lease: Lease | None = None
        self.cancelled = False
        self.children: set[str] = set()
        """Unfinished tasks that it waits for."""
        self.waits = False
        """It lends its slot to them."""
        self.trail: Trail | None = None
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def id(self) -> str:
        """`<pool>/<id>`."""
        return self.request.task_id


class Waiting:
    """`on_limit(tenant, wait_ms)`: see `Lanes`."""

    def __init__(self, tenants: LocalTenants, timers: Timers, on_limit: Callable[[Tenant, int], None]) -> None:
        self._timers = timers
        self.tasks: dict[str, LocalTask] = {}
        """All tasks without an outcome, those that run too."""
        self._of_agents: dict[str, set[str]] = {}
        self._of_tenants: dict[str, set[str]] = {}
        self._mailboxes: dict[str, TaskQueue] = {}
        self.lanes = Lanes(tenants, self._estimate, on_limit)

    def add(self, task: LocalTask) -> None:
        """A task was accepted."""
        self.tasks[task.id] = task
        self._of_tenants.setdefault(task.tenant, set()).add(task.id)
        if name := task.request.agent_name:
            self._of_agents.setdefault(name, set()).add(task.id)

    def forget(self, task: LocalTask) -> None:
        """A task has its outcome."""
        del self.tasks[task.id]
        _discard(self._of_tenants, task.tenant, task.id)
        if name := task.request.agent_name:
            _discard(self._of_agents, name, task.id)

    def mailboxes(self) -> list[str]:
        """Return the names of the agents for which tasks wait."""
        return list(self._mailboxes)

    def mail(self, name: str) -> int:
        """Return how many tasks wait in the mailbox of an agent."""
        return len(self._mailboxes.get(name, ()))

    def count(self, tenant: str) -> int:
        """Return how many tasks of a tenant have no outcome, those that run too."""
        return len(self._of_tenants.get(tenant, ()))

    def is_delayed(self, task_id: str) -> bool:
        """Tell whether a task may not begin yet."""
        return self._timers.is_set(DELAY, task_id)

    def put(self, task: LocalTask, *, in_its_place: bool = False) -> None:
        """Let a task wait until it is its turn; `in_its_place`: where it was before it was taken."""
        name, request = task.request.agent_name, task.request
        if task.rank is None or not in_its_place:
            task.rank = monotonic() + (0.0 if name else request.later_us / 1e6)
        if name:
            self._mailboxes.setdefault(name, TaskQueue()).push(task.id, task.rank)
        else:
            self.lanes.push(task.level, task.tenant, task.id, task.rank)

    def put_later(self, task: LocalTask, delay: float, begin: Callable[[LocalTask], None]) -> None:
        """Let a task wait for so many s, and then `begin` be called with it."""
        self._timers.set(DELAY, task.id, delay, lambda: begin(task))

    def take_out(self, task: LocalTask) -> None:
        """Take a task out of wherever it waits."""
        if self._timers.cancel(DELAY, task.id):
            return
        name = task.request.agent_name
        if name:
            self._mailboxes[name].remove(task.id)
            self._tidy(name)
        else:
            self.lanes.remove(task.level, task.tenant, task.id)

    def promote(self, task: LocalTask) -> None:
        """A batch task has waited long enough behind all others: it waits like them now, and keeps its time."""
        if task.level == BATCH:
            waits = not task.lease and not self.is_delayed(task.id)
            if waits:
                self.take_out(task)
            task.level = NORMAL
            if waits:
                self.put(task, in_its_place=True)

    def next_for(self, name: str) -> LocalTask:
        """Take the first task out of a mailbox; there must be one."""
        task_id = self._mailboxes[name].pop()
        self._tidy(name)
        return self.tasks[task_id]

    def next_by_type(self, *, only_children: bool) -> LocalTask | None:
        """Take out the task by type whose turn it is; see `Lanes.pop`."""
        task_id = self.lanes.pop(only_children=only_children)
        return self.tasks[task_id] if task_id else None

    def of_agent(self, name: str) -> list[LocalTask]:
        """Return what waits for an agent, delayed tasks too."""
        tasks = [self.tasks[task_id] for task_id in self._of_agents.get(name, ())]
        return [task for task in tasks if not task.lease]

    def _estimate(self, tenant: Tenant, task_id: str) -> float:
        return tenant.estimate(self.tasks[task_id].request.agent_type)[0]

    def _tidy(self, name: str) -> None:
        if not self._mailboxes[name]:
            del self._mailboxes[name]


def _discard(sets: dict[str, set[str]], key: str, id: str) -> None:
    sets[key].discard(id)
    if not sets[key]:
        del sets[key]
