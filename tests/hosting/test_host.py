"""A host carries tasks to an outcome, whatever happens on the way."""

import asyncio
from typing import Any

import msgspec
import pytest

from agentpool.agent import Agent, AgentType, Context
from agentpool.config import PoolSettings
from agentpool.hosting import Ending, Host, HostSettings, Place, Run
from agentpool.protocol.records import DesiredAgent
from agentpool.protocol.tasks import ClaimedTask, TaskEnvelope, TaskHeader


class Echo(Agent):
    async def run(self, ctx: Context, input: Any) -> Any:
        return input


class Registry:
    """Knows nothing and agrees to everything."""

    async def confirm(self, name: str, incarnation: int) -> int:
        return 0


async def test_an_agent_whose_task_was_cancelled_before_its_first_step_takes_the_next() -> None:
    told: list[tuple[str, bool]] = []
    registry: Any = Registry()
    settings = HostSettings.of(PoolSettings(agents=("m:Echo",)), "p", "w1", 2)
    place = Place(settings, {"Echo": AgentType(Echo)}, registry, run_by_type=registry.confirm)
    host = Host(
        place, on_idle=lambda *words: told.append(words), on_change=lambda: None, resync=lambda: None
    )  # fmt: skip
    host.agents.start(DesiredAgent(agent_id="p/a", agent_type="Echo", incarnation=1))
    while not told:
        await asyncio.sleep(0)
    task = ClaimedTask("p/t", TaskHeader("", "a", "", "default"), TaskEnvelope(msgspec.Raw(b"1")))
    ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
    run = Run(place, task, lambda _, ending: ended.set_result(ending))
    run.stop("cancelled on request")
    host.begin(run)
    ending = await ended
    assert (ending.verdict, ending.outcome.status) == ("done", "cancelled")
    told.clear()
    host.finish(run, has_mail=True)
    assert told == [("a", True)]
    host.agents.stop("p/a")
    await host.agents.gone()
    await host.close()


class NeverReady(Agent):
    async def start(self, ctx: Context) -> None:
        await asyncio.sleep(60)

    async def run(self, ctx: Context, input: Any) -> Any: ...


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_a_run_that_is_stopped_while_its_agent_is_made_comes_to_its_end(turns: int) -> None:
    registry: Any = Registry()
    settings = HostSettings.of(PoolSettings(agents=("m:NeverReady",)), "p", "w1", 2)
    place = Place(settings, {"NeverReady": AgentType(NeverReady)}, registry, run_by_type=registry.confirm)
    host = Host(place, on_idle=lambda *_: None, on_change=lambda: None, resync=lambda: None)
    ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
    task = ClaimedTask("p/t", TaskHeader("", "", "NeverReady", "default"), TaskEnvelope(msgspec.Raw(b"1")))
    run = Run(place, task, lambda _, ending: ended.set_result(ending))
    host.begin(run)
    for _ in range(turns):
        await asyncio.sleep(0)
    run.stop("cancelled on request")
    assert (await asyncio.wait_for(ended, 5)).outcome.status == "cancelled"
    host.release(run)
    await host.close()
