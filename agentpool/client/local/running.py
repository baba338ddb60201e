"""The tasks of a local pool that run: in which slots, on whose account, and who is next."""

import asyncio
import contextvars
from collections.abc import Callable

import msgspec

from agentpool.client.local.registry import LocalRegistry
from agentpool.client.local.tenants import LocalTenants, Tenant
from agentpool.client.local.timers import Timers
from agentpool.client.local.waiting import Lease, LocalTask, Waiting
from agentpool.hosting import Ending, Host, Run
from agentpool.protocol.tasks import ClaimedTask

__all__ = ["Running"]

HELD = "tenant"
"""The timer of a tenant that waits until it may go on."""


class Running:
    """`host` is set by the pool that puts the parts together; `context` is what agents find in context variables.

    `on_begin(task)` and `on_end(task, ending)` are called when a task begins and when its run has ended, the latter
    unless its agent took it along.
    """

    host: Host

    def __init__(
        self,
        registry: LocalRegistry,
        tenants: LocalTenants,
        timers: Timers,
        capacity: int,
        context: contextvars.Context,
        on_begin: Callable[[LocalTask], None],
        on_end: Callable[[LocalTask, Ending], None],
    ) -> None:
        self._registry, self._tenants, self._timers = registry, tenants, timers
        self.waiting = Waiting(tenants, timers, self._on_limit)
        self._capacity, self._context = capacity, context
        self._on_begin, self._on_end = on_begin, on_end
        self._runs: dict[str, LocalTask] = {}
        self._lent = 0
        self._is_closed = False
        self._none_left = asyncio.Event()
        self._none_left.set()
        self.by_type = 0
        """Tasks by type that run: each holds a slot."""

    def __len__(self) -> int:
        return len(self._runs)

    # -- slots --------------------------------------------------------------------------------------------------

    def free(self) -> int:
        """Slots that neither an agent nor a task by type holds; none once the pool is closed."""
        return 0 if self._is_closed else max(0, self._room())

    def _room(self) -> int:
        return self._capacity - self._registry.placed - self.by_type

    def lend(self, task: LocalTask) -> None:
        """A task waits for tasks of its own, and lends them its slot and its tenant's permit."""
        if task.lease and not task.waits:
            task.waits = True
            self._lent += 1
            task.lease.tenant.waits += 1
            self.let_go(task.lease.tenant)

    def take_back(self, task: LocalTask) -> None:
        """A task waits no more for tasks of its own."""
        if task.lease and task.waits:
            task.waits = False
            self._lent -= 1
            task.lease.tenant.waits -= 1

    # -- whose turn it is ---------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Begin tasks by type while there are slots, or lent ones for what is waited for."""
        while not self._is_closed and (room := self._room()) + self._lent > 0:
            task = self.waiting.next_by_type(only_children=room <= 0)
            if task is None:
                return
            tenant = self._tenants.of(task.tenant)
            self._begin(task, Lease(tenant, *tenant.estimate(task.request.agent_type)))

    def dispatch_agent(self, name: str) -> None:
        """Begin the next task of an agent, if it is free and has one that its tenant may begin."""
        agent = None if self._is_closed else self._registry.find(name)
        if not (agent and self.waiting.mail(name) and self._registry.is_idle(name) and self.host.agents.is_idle(name)):
            return
        tenant = self._tenants.of(agent.tenant)
        allowed, wait_ms = tenant.allowance()
        if not allowed:
            tenant.mail.add(name)
            self.waiting.lanes.hold(tenant, wait_ms)
        elif allowed == 1 and tenant.last_place_to_mail and self.waiting.lanes.fair.waits(tenant.name):
            tenant.last_place_to_mail = False
            asyncio.get_running_loop().call_soon(self.dispatch_agent, name)  # if no task by type has a slot for it
        else:
            self._begin(self.waiting.next_for(name), Lease(tenant))

    def let_go(self, tenant: Tenant) -> None:
        """A tenant that was at a limit may go on, or comes back here."""
        if tenant.held:
            self._timers.cancel(HELD, tenant.name)
            self.waiting.lanes.let_go(tenant)
            names, tenant.mail = tenant.mail, set()
            for name in names:
                self.dispatch_agent(name)

    def _on_limit(self, tenant: Tenant, wait_ms: int) -> None:
        if wait_ms:
            self._timers.set(HELD, tenant.name, wait_ms / 1000, lambda: self._look_again(tenant))

    def _look_again(self, tenant: Tenant) -> None:
        self.let_go(tenant)
        self.dispatch()

    # -- one task -----------------------------------------------------------------------------------------------

    def _begin(self, task: LocalTask, lease: Lease) -> None:
        request, tenant = task.request, lease.tenant
        tenant.last_place_to_mail = bool(request.agent_name) and tenant.allowance()[0] == 1
        task.lease = lease
        tenant.tasks += 1
        tenant.tokens.add(lease.tokens)
        if tenant.limits.requests_per_minute:
            tenant.requests.add(1)
        header = msgspec.structs.replace(request.header(), tenant=tenant.name)
        claimed = ClaimedTask(
            task.id, header, request.envelope, task.attempts + 1, task.starts, tenant.limits.tokens_per_task
        )
        task.run = Run(self.host.place, claimed, self._done)
        self._runs[task.id] = task
        self._none_left.clear()
        if request.agent_name:
            self._registry.begin_task(request.agent_name, task.id)
        else:
            self.by_type += 1
        self._on_begin(task)
        # In the context of the pool: the one at hand is that of whoever made room.
        self._context.copy().run(self.host.begin, task.run)

    def _done(self, run: Run, ending: Ending) -> None:
        task = self._runs.pop(run.task.id)
        name, task.run = task.request.agent_name, None
        if task.lease:  # else its agent has ended, and the task with it
            self._settle(task, task.lease, run, ending)
            self._on_end(task, ending)
        if name:
            self._registry.end_task(name, task.id)
            self.host.finish(run, has_mail=self.waiting.mail(name) > 0)
        else:
            self.by_type -= 1
            self.host.release(run)
            self._registry.fill()
        self.dispatch()
        if not self._runs:
            self._none_left.set()

    def _settle(self, task: LocalTask, lease: Lease, run: Run, ending: Ending) -> None:
        """Weigh in what a task took, and correct what its tenant was charged."""
        tenant, tokens, took = lease.tenant, ending.outcome.tokens, 0.0
        if ending.verdict != "back":
            took = run.duration_ms
            if not task.request.agent_name:
                tenant.weigh_in(task.request.agent_type, took, tokens)
        tenant.tokens.add(tokens - lease.tokens)
        self.waiting.lanes.fair.correct(tenant.name, took - lease.ms, tenant.limits.weight)
        self.end_lease(task)

    def end_lease(self, task: LocalTask) -> None:
        """A task is on its tenant's account no more."""
        if task.lease:
            self.take_back(task)
            tenant, task.lease = task.lease.tenant, None
            tenant.tasks -= 1
            self.let_go(tenant)

    # -- the end ------------------------------------------------------------------------------------------------

    async def ended(self) -> None:
        """Wait until nothing runs."""
        await self._none_left.wait()

    def stop(self, why: str) -> None:
        """Begin nothing more, and stop what runs."""
        self._is_closed = True
        for task in list(self._runs.values()):
            if task.run:
                task.run.stop(why)
