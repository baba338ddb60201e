"""A host carries tasks to an outcome, whatever happens on the way."""

import asyncio
from typing import Any

import msgspec
import pytest

from agentpool.agent import Agent, AgentType, Context
from agentpool.config import PoolSettings
from agentpool.hosting import Ending, Host, HostSettings, Marks, Place, Run
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


class Kept(Marks):
    """Writes down which marks there are."""

    def __init__(self) -> None:
        self.tasks: dict[int, str] = {}

    def begin(self, task_id: str, deadline: float = 0.0, mark: int = 0) -> int:
        mark = mark or len(self.tasks) + 1
        self.tasks[mark] = task_id
        return mark

    def end(self, mark: int) -> None:
        del self.tasks[mark]


class Telling(Agent):
    async def run(self, ctx: Context, input: int) -> list[Any]:
        return [ctx.agent_id, ctx.mark, input]


async def test_the_agent_of_a_run_goes_on_to_the_next_of_its_key_with_its_mark() -> None:
    registry: Any = Registry()
    settings, marks = HostSettings.of(PoolSettings(agents=("m:Telling",)), "p", "w1", 2), Kept()
    place = Place(settings, {"Telling": AgentType(Telling)}, registry, run_by_type=registry.confirm, marks=marks)
    host = Host(place, on_idle=lambda *_: None, on_change=lambda: None, resync=lambda: None)
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    results: list[Any] = []
    held: list[dict[int, str]] = []

    def done(run: Run, ending: Ending) -> None:
        results.append(msgspec.json.decode(ending.outcome.result))
        held.append(dict(marks.tasks))
        if run is not runs[-1]:
            assert host.pass_on(run, runs[len(results)])
        else:
            host.release(run)
            over.set_result(None)

    header = TaskHeader("", "", "Telling", "default")
    runs = [Run(place, ClaimedTask(f"p/t{n}", header, TaskEnvelope(msgspec.Raw(b"%d" % n))), done) for n in range(4)]
    host.begin(runs[0])
    await over
    assert results == [[results[0][0], 1, n] for n in range(4)]
    assert held == [{1: f"p/t{n}"} for n in range(4)]
    await asyncio.sleep(0)
    assert marks.tasks == {}
    await host.close()
