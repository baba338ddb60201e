"""What is particular to pools inside this process: which there are, what they refuse, and how they end."""

import asyncio
import contextvars
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wait import wait_until

import agentpool
from agentpool import Agent, AgentPoolError, ConfigError, Context, connect
from agentpool.client import Pool
from agentpool.client.local import events as local_events
from agentpool.client.local import outcomes as local_outcomes
from agentpool.client.local.queue import SLACK, TaskQueue
from agentpool.client.raw import raw_command

FILE = """
[pools.p]
agents = ["{module}:Echo"]
max_workers = 1
agents_per_worker = 3
"""


request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class Echo(Agent):
    stopped = 0

    async def run(self, ctx: Context, input: Any) -> Any:
        if isinstance(input, float):
            await asyncio.sleep(input)
        return input

    async def stop(self, ctx: Context) -> None:
        Echo.stopped += 1


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("USE_MULTIPROCESSING", raising=False)
    for name in [name for name in os.environ if name.startswith(("REDIS_", "AGENTPOOL_"))]:
        monkeypatch.delenv(name)


def setting(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"AGENTPOOL_POOLS__P__{name.upper()}", str(value))


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    setting(monkeypatch, max_workers=1, agents_per_worker=3, drain_timeout=0.2, agent_stop_timeout=0.2, max_queued=5)
    async with connect("local://", pools={"p": [Echo]}) as client:
        yield client.pool("p")


# -- which pools there are --------------------------------------------------------------------------------------


async def test_classes_are_enough() -> None:
    class Inner(Agent):
        async def run(self, ctx: Context, input: int) -> int:
            return input + 1

    async with connect("local://", pools={"a": [Inner], "b": (Echo, Inner)}) as client:
        assert [info.pool_name for info in await client.pools()] == ["a", "b"]
        assert await client.pool("a").run(Inner, 1) == 2
        assert await client.pool("b").run("Echo", "x") == "x"
        assert (await client.pool("a").stats()).total_capacity == 150
        with pytest.raises(agentpool.UnknownPool, match="a, b"):
            await client.pool("c").run("Echo", 1)


async def test_settings_come_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agentpool.toml").write_text(FILE.format(module="not_needed"))
    async with connect("local://", pools={"p": [Echo]}) as client:
        assert (await client.pool("p").stats()).total_capacity == 3
    setting(monkeypatch, agents_per_worker=7)
    async with connect("local://", pools={"p": [Echo]}) as client:
        assert (await client.pool("p").stats()).total_capacity == 7


async def test_the_pools_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "filed_module.py").write_text(
        "import signal\n"  # which only the main thread may do
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
        "from agentpool import Agent\n"
        "class Echo(Agent):\n"
        "    async def run(self, ctx, input):\n"
        "        return input\n"
    )
    (tmp_path / "agentpool.toml").write_text(FILE.format(module="filed_module"))
    async with connect("local://") as client:
        assert await client.pool("p").run("Echo", [1]) == [1]


@pytest.mark.parametrize("word", ["false", "0", "No", " OFF "])
@pytest.mark.parametrize("url", [None, "redis://127.0.0.1:1"])
async def test_the_switch_turns_every_client_local(monkeypatch: pytest.MonkeyPatch, word: str, url: str | None) -> None:
    monkeypatch.setenv("USE_MULTIPROCESSING", word)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    async with connect(url, pools={"p": [Echo]}) as client:
        assert await client.pool("p").run(Echo, 1) == 1


async def test_the_switch_is_on_by_default_and_knows_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    for word in ("true", "1", ""):
        monkeypatch.setenv("USE_MULTIPROCESSING", word)
        with pytest.raises(agentpool.RedisUnavailable):
            await connect(pools={"p": [Echo]}).open()
    monkeypatch.setenv("USE_MULTIPROCESSING", "maybe")
    with pytest.raises(ConfigError, match="USE_MULTIPROCESSING is 'maybe': it must be true or false"):
        connect()


class NoRun(Agent):
    pass


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ({}, "pools is empty"),
        ({"p": []}, "give a list of agent classes"),
        ({"p": Echo}, "give a list of agent classes"),
        ({"p": [int]}, "no subclass of agentpool.Agent"),
        ({"p": [NoRun]}, "needs a method"),
        ({"p": ["Echo"]}, "no subclass of agentpool.Agent"),
        ({"p": [Echo, Echo]}, "two classes of this pool are named Echo"),
        ({"a b": [Echo]}, "no valid pool name"),
    ],
)
async def test_pools_that_cannot_be(pools: Any, words: str) -> None:
    with pytest.raises(AgentPoolError, match=words):
        await connect("local://", pools=pools).open()


async def test_what_else_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No configuration file"):
        await connect("local://").open()
    with pytest.raises(ConfigError, match="neither host nor path"):
        await connect("local://here", pools={"p": [Echo]}).open()
    (tmp_path / "agentpool.toml").write_text(FILE.format(module="no_such_module"))
    with pytest.raises(ConfigError, match=r'pool "p".*no_such_module'):
        await connect("local://").open()


def test_neither_redis_nor_a_store_is_loaded() -> None:
    program = (
        "import asyncio, sys\n"
        "from agentpool import Agent, connect\n"
        "class Echo(Agent):\n"
        "    async def run(self, ctx, input): return input\n"
        "async def main():\n"
        "    async with connect('local://', pools={'p': [Echo]}) as client:\n"
        "        print(await client.pool('p').run(Echo, 'hello'))\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name in ('redis', 'uvloop', 'agentpool.store', 'agentpool.master')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "hello\n[]\n"
    assert done.stderr == ""


# -- what needs more than this process --------------------------------------------------------------------------


async def test_what_needs_workers_says_so(pool: Pool) -> None:
    (worker,) = await pool.workers()
    for asked in (pool.drain(worker.process_id), pool.scale(3)):
        with pytest.raises(agentpool.WorkersNeeded, match="Start agentpool-master"):
            await asked
    with pytest.raises(ConfigError, match="Start agentpool-master"):
        _ = pool._client.store
    with pytest.raises(ConfigError, match="need Redis"):
        await anext(raw_command(pool._client, ["PING"]))
    with pytest.raises(agentpool.UnknownWorker):
        await pool.drain("other")
    assert worker.pid == os.getpid()
    assert worker.memory_bytes > 1_000_000


# -- bounds -----------------------------------------------------------------------------------------------------


async def test_queues_are_bounded(pool: Pool) -> None:
    agent = await pool.spawn(Echo)
    busy = [await pool.submit(Echo, 60.0) for _ in range(2)]
    first = await agent.submit(60.0)
    waiting = [await pool.submit(Echo, 1) for _ in range(5)] + [await agent.submit(1) for _ in range(5)]
    with pytest.raises(agentpool.QueueFull, match='tasks of tenant "default"'):
        await pool.submit(Echo, 1)
    with pytest.raises(agentpool.QueueFull):
        await agent.submit(1)
    other = await pool.submit(Echo, 1, tenant="other")
    assert await waiting[0].cancel()
    await pool.submit(Echo, 1)
    for task in (*busy, first):
        assert await task.cancel()
    assert await other.result(5) == 1
    for task in waiting[1:]:
        assert await task.result(5) == 1


async def test_outcomes_are_forgotten(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_outcomes, "OUTCOMES_MAX", 2)
    handles = [await pool.submit(Echo, number) for number in range(4)]
    await wait_until(lambda: _idle(pool))
    with pytest.raises(agentpool.UnknownTask, match="result_ttl"):
        await handles[0].result()
    assert await handles[3].result() == 3
    tasks = pool._client.backend._pools["p"].tasks  # type: ignore[attr-defined]
    for _ in range(5):
        await pool.run(Echo, 1)
    assert len(tasks._outcomes) == 2, "of what was waited for by `run` nobody asks later"


async def test_outcomes_are_forgotten_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, result_ttl=0.05)
    async with connect("local://", pools={"p": [Echo]}) as client:
        handle = await client.pool("p").submit(Echo, 1)
        assert await handle.result(5) == 1
        await asyncio.sleep(0.06)
        with pytest.raises(agentpool.UnknownTask):
            await handle.info()


async def test_a_follower_who_does_not_read_costs_no_more(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_events, "EVENTS_MAX", 6)
    follower = pool.events(follow=True)
    first = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    for _ in range(4):
        await (await pool.spawn(Echo)).terminate()
    assert (await first).type == "agent.spawned"
    rest = [await anext(follower) for _ in range(6)]
    assert rest[-1].type == "agent.terminated"
    await follower.aclose()  # type: ignore[attr-defined]
    assert not pool._client.backend._events._followers  # type: ignore[attr-defined]


async def _idle(pool: Pool) -> bool:
    stats = await pool.stats()
    return not (stats.queued_tasks or stats.running_tasks)


# -- the end ----------------------------------------------------------------------------------------------------


async def test_a_close_lets_finish_what_runs_in_time_and_stops_every_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, max_workers=1, agents_per_worker=3, drain_timeout=0.5, agent_stop_timeout=0.2)
    Echo.stopped = 0
    async with connect("local://", pools={"p": [Echo]}) as client:
        pool = client.pool("p")
        agent = await pool.spawn(Echo)
        short, long, waits = await agent.submit(0.1), await pool.submit(Echo, 60.0), await agent.submit(1)
        await pool.submit(Echo, 60.0)
        starved = asyncio.create_task(pool.spawn(Echo))
        results = [asyncio.create_task(task.result(5)) for task in (short, long, waits)]
        await asyncio.sleep(0.05)
    assert await results[0] == 0.1
    for result, why in ((results[1], "client of this local pool was closed"), (results[2], "before it ran")):
        with pytest.raises(agentpool.TaskCancelled, match=why):
            await result
    with pytest.raises(agentpool.AgentTerminated, match="closed"):
        await starved
    assert Echo.stopped == 3
    with pytest.raises(agentpool.PoolClosed):
        await pool.run(Echo, 1)
    await client.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Asker(Agent):
    """Asks another twice, with a pause."""

    async def run(self, ctx: Context, input: float) -> list[Any]:
        first = await ctx.run(Echo, "first")
        await asyncio.sleep(input)
        return [first, await ctx.run(Echo, "second")]


async def test_what_runs_at_a_close_may_still_ask_others(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, drain_timeout=5)
    async with connect("local://", pools={"p": [Echo, Asker]}) as client:
        asking = asyncio.create_task(client.pool("p").run(Asker, 0.1))
        await asyncio.sleep(0.05)
    assert await asking == ["first", "second"]


async def test_a_close_that_is_cancelled_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, drain_timeout=0.3, agent_stop_timeout=0.2)
    client = connect("local://", pools={"p": [Echo]})
    await client.open()
    await client.pool("p").submit(Echo, 60.0)
    await client.pool("p").spawn(Echo)
    Echo.stopped = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.close()
    await client.close()
    assert Echo.stopped == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_those_who_follow_come_to_the_end(pool: Pool) -> None:
    seen: list[str] = []

    async def follow() -> None:
        async for event in pool.events(follow=True):
            seen.append(event.type)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await pool.spawn(Echo)
    await pool._client.close()
    await following
    assert seen[0] == "agent.spawned"
    assert seen[-1] == "agent.terminated"


# -- agents -----------------------------------------------------------------------------------------------------


class Reader(Agent):
    """Tells what it finds in a context variable."""

    async def run(self, ctx: Context, input: float) -> str:
        await asyncio.sleep(input)
        return request_id.get()


async def test_agents_never_see_the_context_of_callers() -> None:
    request_id.set("program")
    async with connect("local://", pools={"p": [Reader]}) as client:
        pool = client.pool("p")
        agent = await asyncio.create_task(_as_request("spawner", pool.spawn(Reader)))

        calls = [_as_request(f"r{number}", agent.run(0.01)) for number in range(3)]
        calls += [_as_request(f"r{number}", pool.run(Reader, 0.01)) for number in range(3)]
        assert await asyncio.gather(*map(asyncio.create_task, calls)) == ["program"] * 6


async def _as_request(name: str, asking: Any) -> Any:
    request_id.set(name)
    return await asking


class Slow(Agent):
    """Takes its time to stop; notes when it is there."""

    there: ClassVar[list[str]] = []
    seconds: ClassVar[float] = 0.8

    async def start(self, ctx: Context) -> None:
        assert ctx.agent_id not in self.there, "two of one id"
        self.there.append(ctx.agent_id)

    async def run(self, ctx: Context, input: Any) -> Any:
        return input

    async def stop(self, ctx: Context) -> None:
        await asyncio.sleep(self.seconds)
        self.there.remove(ctx.agent_id)


async def test_two_agents_of_one_id_never_live_together() -> None:
    async with connect("local://", pools={"p": [Slow]}) as client:
        pool = client.pool("p")
        for _ in range(3):
            agent = await pool.spawn(Slow, id="a")
            await agent.terminate()
        agent = await pool.spawn(Slow, id="a")
        assert await agent.run(1) == 1


async def test_a_slot_is_free_at_once_when_its_agent_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, max_workers=1, agents_per_worker=1)
    monkeypatch.setattr(Slow, "seconds", 2.0)
    async with connect("local://", pools={"p": [Slow, Echo]}) as client:
        pool = client.pool("p")
        agent = await pool.spawn(Slow)
        running = asyncio.create_task(pool.run(Echo, 1))
        await asyncio.sleep(0.01)
        await agent.terminate()
        assert await running == 1
        assert Slow.there, "the agent still stops"


async def test_the_outcome_of_a_run_that_failed_can_be_read(pool: Pool) -> None:
    agent = await pool.spawn(Echo, id="a")
    running = asyncio.create_task(agent.run(60.0))
    await wait_until(lambda: _runs(pool))
    await agent.terminate()
    with pytest.raises(agentpool.AgentTerminated) as caught:
        await running
    task_id = re.findall(r"p/\w{22}", str(caught.value))[0]
    info = await pool.task(task_id).info()
    assert (info["status"], info["process_id"]) == ("agent_terminated", (await pool.workers())[0].process_id)


async def _runs(pool: Pool) -> bool:
    return bool((await pool.stats()).running_tasks)


async def test_an_agent_that_got_lost_is_started_again(pool: Pool) -> None:
    agent = await pool.spawn(Echo, id="a")
    host = pool._client.backend._pools["p"]._host  # type: ignore[attr-defined]
    del host.agents._held["p/a"]
    host.agents._resync()
    assert await agent.run(1, timeout=5) == 1


# -- queues -----------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(0, 3), st.just("pop"), st.integers(100, 140)), max_size=200))
def test_a_queue_serves_by_rank_and_then_in_order(steps: list[Any]) -> None:
    queue, model, added = TaskQueue(), [], 0
    for step in steps:
        if step == "pop":
            if model:
                expected = min(model, key=lambda entry: entry[0])
                model.remove(expected)
                assert queue.pop() == expected[1]
        elif step < 100:
            queue.push(f"t{added}", step)
            model.append((step, f"t{added}"))
            added += 1
        else:
            gone = f"t{step - 100}"
            queue.remove(gone)
            model = [entry for entry in model if entry[1] != gone]
        assert len(queue) == len(model)
        assert len(queue._heap) <= 2 * len(model) + SLACK + 1 or step == "pop"
    assert sorted(queue.all()) == sorted(entry[1] for entry in model)


async def test_nothing_is_left_after_a_stormy_day(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, max_workers=1, agents_per_worker=5, max_pending=3, max_queued=4, agent_stop_timeout=0.2)
    dice = random.Random(7)
    async with connect("local://", pools={"p": [Echo]}) as client:
        pool = client.pool("p")

        async def user(number: int) -> None:
            for _ in range(20):
                verbs = (_spawn_and_use, _run, _submit_and_cancel)
                with_timeout = asyncio.timeout(dice.choice([0.0, 0.001, 0.004, 0.02, 1.0]))
                try:
                    async with with_timeout:
                        await dice.choice(verbs)(pool, dice, number)
                except (TimeoutError, agentpool.QueueFull, agentpool.TaskCancelled, agentpool.NoCapacity):
                    pass

        await asyncio.gather(*(user(number) for number in range(20)))
        await wait_until(lambda: _idle(pool))
        for record in await pool.agents():
            await pool.agent(record.agent_id).terminate()
        stats = await pool.stats()
        assert (stats.agent_count, stats.used_capacity, stats.pending_agents) == (0, 0, 0)
        assert await pool.run(Echo, 1, timeout=5) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _spawn_and_use(pool: Pool, dice: random.Random, number: int) -> None:
    async with pool.acquire(Echo, tenant=f"t{number % 3}", timeout=0.5) as agent:
        assert await agent.run(dice.random() / 100) is not None


async def _run(pool: Pool, dice: random.Random, number: int) -> None:
    assert await pool.run(Echo, number, tenant=f"t{number % 3}", priority=dice.randrange(10)) == number


async def _submit_and_cancel(pool: Pool, dice: random.Random, number: int) -> None:
    handle = await pool.submit(Echo, dice.random() / 50)
    await asyncio.sleep(dice.random() / 200)
    await handle.cancel()
