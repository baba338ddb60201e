"""A host carries tasks to an outcome, whatever happens on the way."""

import asyncio
from typing import Any

import msgspec

from agentpool.agent import Agent, AgentType, Context
from agentpool.config import PoolSettings
from agentpool.hosting import Host, HostSettings, Place, Run
from agentpool.protocol.records import ClaimedTask, DesiredAgent, TaskEnvelope, TaskHeader


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
    run = Run(place, task)
    run.stop("cancelled on request")
    outcome = await host.carry_out(run)
    assert outcome.status == "cancelled"
    told.clear()
    host.finish(run, has_mail=True)
    assert told == [("a", True)]
    host.agents.stop("p/a")
    await host.agents.gone()
    await host.close()
