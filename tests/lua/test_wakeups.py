"""Workers that look only when they are told to: whatever waits for a limit or a slot comes to its end all the same."""

import asyncio
import random
from typing import Any

import pytest
from support.seeds import (
    ended,
    exchange,
    listening,
    read_commands,
    seed_pool,
    seed_running_agent,
    seed_task,
    seed_worker,
)

from agentpool.doctor import examine
from agentpool.protocol.commands import Wake
from agentpool.protocol.tasks import ClaimedTask
from agentpool.store import Store
from agentpool.store.tasks import EndedTask

TENANTS = ("a", "b")


class Worker:
    """Exchanges as a worker does, but never by itself: beats, which look whether anything waits, are left out."""

    def __init__(self, store: Store, name: str, capacity: int) -> None:
        self.store, self.name, self.capacity = store, name, capacity
        self.agents: set[str] = set()
        self.running: list[ClaimedTask] = []
        self.mail: set[str] = set()
        self.turns_wait = self.turns_left = False

    @property
    def room(self) -> int:
        by_type = sum(1 for task in self.running if not task.header.agent_name)
        return self.capacity - len(self.agents) - by_type

    def hear(self, command: Wake) -> None:
        if command.agent_id:
            self.mail.add(command.agent_id.removeprefix("p/"))
        else:
            self.turns_wait = True

    async def end(self, task: ClaimedTask) -> None:
        self.running.remove(task)
        self.turns_wait |= self.turns_left
        await self.look([ended(task.id, task.header.agent_name)])

    async def look(self, ends: list[EndedTask]) -> None:
        while True:
            busy = {task.header.agent_name for task in self.running} | {end.agent_name for end in ends}
            names = sorted(self.mail - busy)
            room = self.room if self.turns_wait and self.room > 0 else -1
            if not (ends or names or room >= 0):
                return
            self.mail.difference_update(names)
            self.turns_wait = False
            answer = await exchange(self.store, self.name, room=room, ended=ends, names=names)
            assert answer.stale == ()
            self.running += answer.tasks
            self.mail.update(name for name, count in answer.mail.items() if count)
            self.turns_left = answer.turns > 0
            self.turns_wait = self.turns_left and (room < 0 or any(not task.header.agent_name for task in answer.tasks))
            ends = []


class World:
    """A pool whose workers have a few slots, some of them taken by agents of two tenants with low limits."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.chance = store, random.Random(seed)
        self.workers: dict[str, Worker] = {}
        self.agents: dict[str, str] = {}
        self.submitted = 0

    async def prepare(self) -> None:
        await seed_pool(self.store)
        for number in range(self.chance.randint(1, 3)):
            name, capacity = f"w{number}", self.chance.randint(1, 3)
            await seed_worker(self.store, name, capacity=capacity)
            self.workers[name] = Worker(self.store, name, capacity)
        for tenant in TENANTS:
            await self.store.tenants.limit("p", tenant, {"running": self.chance.randint(1, 2)})
        for number in range(self.chance.randint(0, sum(worker.capacity for worker in self.workers.values()) - 1)):
            name, tenant = f"a{number}", self.chance.choice(TENANTS)
            self.workers[await seed_running_agent(self.store, name, tenant=tenant)].agents.add(name)
            self.agents[name] = tenant

    async def submit(self) -> None:
        self.submitted += 1
        agent = self.chance.choice(["", *self.agents])
        tenant = self.agents.get(agent) or self.chance.choice(TENANTS)
        await seed_task(self.store, f"t{self.submitted}", agent=agent, tenant=tenant)

    async def hear(self, heard: Any) -> bool:
        """Let workers do what they were told since; False when that was nothing."""
        commands = [command for command in await read_commands(heard) if isinstance(command, Wake)]
        self.chance.shuffle(commands)
        for command in commands:
            worker = self.workers[command.process_id]
            worker.hear(command)
            await worker.look([])
        return bool(commands)

    async def end_one(self) -> bool:
        """Let one of the running tasks end; False when none runs."""
        running = [(worker, task) for worker in self.workers.values() for task in worker.running]
        if running:
            worker, task = self.chance.choice(running)
            await worker.end(task)
        return bool(running)

    async def rest(self, heard: Any) -> None:
        """Go on until nothing more happens, timers included."""
        while True:
            while await self.hear(heard) or await self.end_one():
                pass
            due_ms = await self.store.tasks.fire_timers("p")
            if not await self.hear(heard):
                if due_ms < 0:
                    return
                await asyncio.sleep(due_ms / 1000 + 0.001)


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_that_waits_is_forgotten(store: Store, seed: int) -> None:
    world = World(store, seed)
    await world.prepare()
    async with listening(store, *(store.keys.worker_channel(name) for name in world.workers)) as heard:
        for _ in range(40):
            step = world.chance.random()
            if step < 0.5:
                await world.submit()
            elif step < 0.8:
                await world.end_one()
            else:
                await world.hear(heard)
        await world.rest(heard)
    ids = [f"p/t{number + 1}" for number in range(world.submitted)]
    found = await store.tasks.outcomes(ids)
    assert [id for id in ids if id not in found] == [], "these wait, and nobody was told to look"
    assert await examine(store) == []
