"""Clients that ask for everything that can be asked, at random from a seed, and note what they were told."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from chaos.cluster import LIMITS, POOL
from chaos.history import History, Operation

from agentpool import RetryPolicy
from agentpool.client import Client
from agentpool.client.tasks import TaskHandle
from agentpool.errors import (
    AgentLimitError,
    AgentPoolError,
    QueueFull,
    RedisUnavailable,
    UnknownAgent,
)
from agentpool.protocol.states import OUTCOMES

__all__ = ["Users", "proof_of"]

REFUSALS = (AgentLimitError, QueueFull, UnknownAgent)
"""Errors which promise that nothing was accepted; of all but `run`, so do all others but that Redis is away."""
AGENTS_MAX = 24
PATIENCE_S = 60.0
KEY_TRIES = 20
TENANTS = ("default", "default", "small", "middle", "large")


def proof_of(result: Any) -> str:
    """Return the run that a result tells of, or ''."""
    return str(result.get("run", "")) if isinstance(result, dict) else ""


class Users:
    """So many users at once, who share clients and agents. `rate` is operations a second, of all together."""

    def __init__(
        self, history: History, clients: list[Client], seed: int, *, users: int = 20, rate: float = 25
    ) -> None:
        self._history, self._clients = history, clients
        self._dice = random.Random(f"users {seed}")
        self._pause = users / rate
        self._count = users
        self._stop = asyncio.Event()
        self._users: list[asyncio.Task[None]] = []
        self._waits: set[asyncio.Task[None]] = set()
        self.agents: dict[str, str] = {}
        """Agents that were acknowledged and not yet ended: id -> tenant."""
        self._names = 0
        self._keys = 0

    def start(self) -> None:
        """Begin."""
        self._users = [asyncio.create_task(self._be_user(), name=f"user {n}") for n in range(self._count)]

    async def stop(self) -> None:
        """Ask for nothing new, and wait for the answers to what was asked."""
        self._stop.set()
        for waiting in (self._users, self._waits):
            if waiting:
                _, late = await asyncio.wait(waiting, timeout=2 * PATIENCE_S)
                for each in late:
                    each.print_stack()
                    each.cancel()

    async def _be_user(self) -> None:
        while not self._stop.is_set():
            act = self._dice.choices([act for act, _ in _ACTS], [weight for _, weight in _ACTS])[0]
            await act(self)
            await asyncio.sleep(self._dice.uniform(0, 2 * self._pause))

    # -- what is common -----------------------------------------------------------------------------------------

    def _pool(self) -> Any:
        return self._dice.choice(self._clients).pool(POOL)

    def _job(self, operation: Operation, **more: Any) -> dict[str, Any]:
        """Return a job; most are long enough to be at work when something happens, as far as limits let them."""
        lengths = (0.0, 0.1, 0.3) if operation.tenant in LIMITS else (0.0, 0.02, 0.1, 0.5, 1.0, 2.0)
        return {"op": operation.number, "seconds": self._dice.choice(lengths), **more}

    async def _ask(self, operation: Operation, call: Awaitable[Any]) -> Any:
        """Await a call and note what became of it; returns None unless it was acknowledged."""
        try:
            answer = await call
        except RedisUnavailable as error:
            self._history.answered(operation, "unknown", error)
        except REFUSALS as error:
            self._history.answered(operation, "refused", error)
        except AgentPoolError as error:
            self._history.answered(operation, "acknowledged" if operation.kind == "run" else "refused", error)
        except Exception as error:
            self._history.answered(operation, "broke", error)
        else:
            self._history.answered(operation, "acknowledged")
            return answer
        return None

    def _follow(self, operation: Operation, handle: TaskHandle) -> None:
        """Wait for the task's end beside all else, and note what its caller is told."""
        wait = asyncio.create_task(self._hear(operation, handle), name=f"result of {handle.id}")
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _hear(self, operation: Operation, handle: TaskHandle) -> None:
        try:
            operation.told = proof_of(await handle.result(PATIENCE_S))
        except AgentPoolError as error:
            # What it is of them stands in what is recorded.
            operation.told = str(handle.state) if handle.state in OUTCOMES else ""
            if not operation.told:
                operation.unheard = f"{type(error).__name__}: {error}"
        except Exception as error:
            self._history.answered(operation, "broke", error)

    # -- tasks --------------------------------------------------------------------------------------------------

    async def _submit(self, kind: str, call: Callable[[Operation], Awaitable[Any]], **facts: Any) -> Any:
        operation = self._history.invoke(kind, **facts)
        handles = await self._ask(operation, call(operation))
        if handles is None:
            return None
        handles = handles if isinstance(handles, list) else [handles]
        operation.tasks = tuple(handle.id for handle in handles)
        if self._dice.random() < 0.5:
            self._follow(operation, handles[0])
        return handles[0]

    async def submit(self) -> None:
        tenant, pool = self._dice.choice(TENANTS), self._pool()
        options = {"tenant": tenant, "priority": self._dice.choice((1, 5, 5, 5, 8))}
        agent_type = self._dice.choice(("Clerk", "Clerk", "Clerk", "Sole"))
        await self._submit("submit", lambda op: pool.submit(agent_type, self._job(op), **options), tenant=tenant)

    async def submit_many(self) -> None:
        tenant, pool, count = self._dice.choice(TENANTS), self._pool(), self._dice.randint(2, 12)
        await self._submit(
            "submit_many",
            lambda op: pool.submit_many("Clerk", [self._job(op) for _ in range(count)], tenant=tenant),
            tenant=tenant,
            count=count,
        )

    async def submit_later(self) -> None:
        pool, delay = self._pool(), self._dice.uniform(0.2, 3.0)
        await self._submit("submit", lambda op: pool.submit("Clerk", self._job(op), delay=delay), delay=delay)

    async def submit_failing(self) -> None:
        """One that succeeds at its second or third attempt, or never."""
        pool, at = self._pool(), self._dice.choice((2, 3, -1))
        retry = RetryPolicy(attempts=3, delay=0.05, max_delay=0.5)
        await self._submit(
            "submit",
            lambda op: pool.submit("Clerk", self._job(op, succeeds_at=at), retry=retry),
            expects=("failed",) if at < 0 else ("succeeded",),
        )

    async def submit_too_long(self) -> None:
        pool = self._pool()
        await self._submit(
            "submit",
            lambda op: pool.submit("Clerk", {"op": op.number, "seconds": 30.0}, timeout=0.3),
            expects=("timed_out",),
        )

    async def submit_expiring(self) -> None:
        pool, expires = self._pool(), self._dice.uniform(0.1, 2.0)
        await self._submit(
            "submit",
            lambda op: pool.submit("Clerk", self._job(op), expires=expires, tenant="small"),
            expects=("succeeded", "expired"),
            tenant="small",
        )

    async def submit_parent(self) -> None:
        """A task of which a part is another's: when that one is lost, the parent may run again, or fail with it."""
        pool = self._pool()
        await self._submit("submit", lambda op: pool.submit("Clerk", self._job(op, child=True)))

    async def submit_or_reject(self) -> None:
        pool = self._pool()
        await self._submit(
            "submit",
            lambda op: pool.submit("Clerk", self._job(op), tenant="small", when_limited="reject"),
            tenant="small",
        )

    async def submit_with_key(self) -> None:
        """Hand a task in with a key until it is acknowledged, as programs do; then once more, now and then."""
        self._keys += 1
        key, pool = f"key-{self._keys}", self._pool()
        first = self._history.invoke("submit", key=key)
        job = self._job(first)
        operation, again = first, self._dice.random() < 0.3
        for _ in range(KEY_TRIES):
            handle = await self._ask(operation, pool.submit("Clerk", job, key=key))
            if handle is not None:
                operation.tasks = (handle.id,)
                self._follow(operation, handle)
                if not again:
                    return
                again = False
            elif operation.answer != "unknown":
                return
            operation = self._history.invoke("submit", key=key)

    async def submit_and_cancel(self) -> None:
        pool = self._pool()
        handle = await self._submit("submit", lambda op: pool.submit("Clerk", self._job(op, seconds=2.0)))
        if handle:
            await asyncio.sleep(self._dice.choice((0.0, 0.1, 0.5)))
            operation = self._history.invoke("cancel", tasks=(handle.id,))
            await self._ask(operation, handle.cancel())

    async def run(self) -> None:
        tenant, pool = self._dice.choice(TENANTS), self._pool()
        operation = self._history.invoke("run", tenant=tenant)
        result = await self._ask(operation, pool.run("Clerk", self._job(operation), tenant=tenant, timeout=PATIENCE_S))
        operation.told = proof_of(result)

    # -- agents -------------------------------------------------------------------------------------------------

    async def spawn(self) -> None:
        if len(self.agents) >= AGENTS_MAX:
            await self.terminate()
            return
        self._names += 1
        # Some come back under a name that was used before.
        name = f"agent-{self._names if self._dice.random() < 0.8 else self._dice.randint(1, self._names)}"
        agent_id, tenant = f"{POOL}/{name}", self._dice.choice(TENANTS)
        if agent_id in self.agents or self._is_asked(agent_id):
            return
        kind = self._dice.choice(("Clerk", "Keeper", "Sole", "Sole"))
        operation = self._history.invoke("spawn", agent=agent_id, tenant=tenant)
        if await self._ask(operation, self._pool().spawn(kind, id=name, tenant=tenant, timeout=30)):
            self.agents[agent_id] = tenant

    def _is_asked(self, agent_id: str) -> bool:
        """Whether its last spawn or end is not answered, or nobody knows the answer: the name is left alone then."""
        for operation in reversed(self._history.operations):
            if operation.agent == agent_id and operation.kind in ("spawn", "terminate"):
                return operation.answer in ("pending", "unknown")
        return False

    async def terminate(self) -> None:
        if len(self.agents) < AGENTS_MAX / 3:
            return
        agent_id = self._dice.choice(sorted(self.agents))
        tenant = self.agents.pop(agent_id)
        for _ in range(KEY_TRIES):
            operation = self._history.invoke("terminate", agent=agent_id, tenant=tenant)
            await self._ask(operation, self._pool().agent(agent_id).terminate())
            if operation.answer != "unknown":
                return

    async def mail(self) -> None:
        """Tasks for one agent: handed in, or run at once."""
        if not self.agents:
            return
        agent_id = self._dice.choice(sorted(self.agents))
        tenant, handle = self.agents[agent_id], self._pool().agent(agent_id)
        if self._dice.random() < 0.6:
            await self._submit("submit", lambda op: handle.submit(self._job(op)), agent=agent_id, tenant=tenant)
        else:
            operation = self._history.invoke("run", agent=agent_id, tenant=tenant)
            result = await self._ask(operation, handle.run(self._job(operation), timeout=PATIENCE_S))
            operation.told = proof_of(result)

    async def end_agents(self) -> None:
        """End all that are left; what was not acknowledged is left to be found."""
        await asyncio.gather(*(self._pool().agent(agent_id).terminate() for agent_id in sorted(self.agents)))


_ACTS: tuple[tuple[Callable[[Users], Awaitable[None]], int], ...] = (
    (Users.submit, 20),
    (Users.submit_many, 4),
    (Users.submit_later, 5),
    (Users.submit_failing, 5),
    (Users.submit_too_long, 2),
    (Users.submit_expiring, 3),
    (Users.submit_parent, 3),
    (Users.submit_or_reject, 4),
    (Users.submit_with_key, 8),
    (Users.submit_and_cancel, 4),
    (Users.run, 15),
    (Users.spawn, 6),
    (Users.terminate, 4),
    (Users.mail, 20),
)
