"""Running tasks: typed and plain, what becomes of them, and how the answer comes back whatever is lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from support.tiny_pool import POOL, TinyPool, TinyWorker, tiny_pool
from support.wait import wait_until

from agentpool import (
    Agent,
    AgentTerminated,
    ConfigError,
    Context,
    InputTooLarge,
    InvalidInput,
    PoolClosed,
    QueueFull,
    RedisUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    UnknownAgent,
    UnknownAgentType,
    UnknownTask,
    WorkerLost,
    connect,
)
from agentpool.client import Client
from agentpool.client.client import RedisClient
from agentpool.client.kinds import UNTYPED, Kind, kind_of
from agentpool.client.requests import new_request, new_requests
from agentpool.client.tasks import result_of
from agentpool.protocol.retrying import RetryPolicy
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import Outcome, TaskError


class Diff(msgspec.Struct):
    path: str
    lines: list[int] = []


class Review(msgspec.Struct):
    text: str
    score: int = 0


class Reviewer(Agent):
    async def run(self, ctx: Context, input: Diff) -> Review:
        raise NotImplementedError


@pytest.fixture
async def tiny(redis_url: str) -> AsyncIterator[TinyPool]:
    async with tiny_pool(redis_url, POOL, "Echo", "Reviewer") as pool:
        yield pool


class Gate:
    """A handler that stops until it is opened, and counts who came."""

    def __init__(self) -> None:
        self.entered = 0
        self.left = 0
        self.open = asyncio.Event()

    async def __call__(self, input: Any) -> Any:
        self.entered += 1
        try:
            await self.open.wait()
        finally:
            self.left += 1
        return input


@pytest.fixture
async def gate(tiny: TinyPool) -> Gate:
    gate = Gate()
    await tiny.add_worker("w1", handler=gate)
    return gate


# -- results ----------------------------------------------------------------------------------------------------


async def test_run_by_type_and_on_an_agent(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    pool = client.pool(POOL)
    agent = await pool.spawn("Echo", timeout=5)
    for value in ({"a": [1, None, True, 1.5]}, "ü ✓", 2**70, None, [], {}, ""):
        assert await pool.run("Echo", value, timeout=5) == value
        assert await agent.run(value) == value
    assert (await agent.info()).run_count == 7


async def test_a_class_gives_typed_results(client: Client, tiny: TinyPool) -> None:
    async def review(input: Any) -> Any:
        return {"text": f"{input['path']}: {len(input['lines'])}"}

    await tiny.add_worker(handler=review)
    pool = client.pool(POOL)
    expected = Review(text="x: 2")
    assert await pool.run(Reviewer, Diff("x", [1, 2])) == expected
    assert await pool.run(Reviewer, {"path": "x", "lines": [1, 2]}) == expected
    agent = await pool.spawn(Reviewer, id="r", timeout=5)
    assert await agent.run(Diff("x", [1, 2])) == expected
    assert await pool.agent("r", Reviewer).run(Diff("x", [1, 2])) == expected
    assert await pool.agent("r").run(Diff("x", [1, 2])) == {"text": "x: 2"}
    task = await pool.submit(Reviewer, Diff("x", [1, 2]))
    assert await task.result(5) == await pool.task(task.id, Reviewer).result(5) == expected
    assert await pool.task(task.id).result() == {"text": "x: 2"}


async def test_a_result_that_is_not_what_the_class_declares(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    with pytest.raises(TaskFailed, match="another release"):
        await client.pool(POOL).run(Reviewer, Diff("x"))


async def test_large_inputs_and_results(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    text = "x" * 90_000
    assert await client.pool(POOL).run("Echo", text, timeout=5) == text


async def test_submit_and_fetch_later(client: Client, tiny: TinyPool) -> None:
    pool = client.pool(POOL)
    task = await pool.submit("Echo", 7)
    assert (await task.info())["status"] == "queued"
    assert repr(task) == f"TaskHandle('{task.id}')"
    with pytest.raises(TaskTimedOut, match="It goes on"):
        await task.result(0.05)
    await tiny.add_worker("w1")
    both = await asyncio.gather(task.result(5), task.result(5))
    assert both == [7, 7]
    assert await task.result() == 7
    info = await task.info()
    assert (info["status"], info["process_id"], info["result"]) == ("succeeded", "w1", 7)
    assert await task.cancel() is False


async def test_urgent_tasks_of_a_tenant_come_first(client: Client, tiny: TinyPool) -> None:
    seen: list[int] = []

    async def note(input: int) -> None:
        seen.append(input)

    pool = client.pool(POOL)
    for priority in (9, 5, 0, 5):
        await pool.submit("Echo", priority, priority=priority)
    await tiny.add_worker(capacity=1, handler=note)
    await wait_until(lambda: len(seen) == 4)
    assert seen == [0, 5, 5, 9]
    for wrong in (-1, 10, True, 1.5):
        with pytest.raises(InvalidInput, match="0 \\(most urgent\\) to 9"):
            await pool.submit("Echo", 1, priority=wrong)  # type: ignore[arg-type]


async def test_submit_to_an_agent_keeps_the_order(client: Client, tiny: TinyPool) -> None:
    seen: list[int] = []

    async def note(input: int) -> None:
        seen.append(input)

    await tiny.add_worker(handler=note)
    agent = await client.pool(POOL).spawn("Echo", timeout=5)
    tasks = [await agent.submit(number) for number in range(20)]
    for task in tasks:
        assert await task.result(5) is None
    assert seen == list(range(20))


async def test_thousands_at_once_share_one_subscription(redis_url: str) -> None:
    async with tiny_pool(redis_url, POOL, max_queued=5000) as tiny, connect(redis_url) as client:
        await tiny.add_worker(capacity=100)
        results = await asyncio.gather(*(client.pool(POOL).run("Echo", n, timeout=60) for n in range(2000)))
        assert results == list(range(2000))
        replies = await tiny.store.connection.redis.pubsub_channels("*:replies")
        assert len(replies) == 1
        assert client.backend.replies._tasks == {}


# -- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input", "path"),
    [
        ({"path": 5}, "$.path"),
        ({"path": "x", "lines": [1, "b"]}, "$.lines[1]"),
        ({}, "$"),
        ("x", "$"),
        (Diff(5), "$.path"),
    ],
)  # type: ignore[arg-type]
async def test_a_wrong_input_is_refused_before_it_is_sent(
    client: Client, tiny: TinyPool, input: Any, path: str
) -> None:
    pool = client.pool(POOL)
    with pytest.raises(InvalidInput) as caught:
        await pool.run(Reviewer, input)
    assert caught.value.path == path
    assert (await pool.stats()).queued_tasks == 0


class Plain(Agent):
    async def run(self, ctx: Any, input: int) -> int:
        return input


def test_an_input_of_a_plain_type_is_written_and_whatever_is_none_is_checked() -> None:
    kind = kind_of(Plain)
    assert bytes(kind.encode(5)) == b"5"
    assert bytes(kind.encode(2**70)) == b"1180591620717411303424"
    for wrong in (True, "5", 5.5, None):
        with pytest.raises(InvalidInput, match="Plain: Expected `int`"):
            kind.encode(wrong)
    with pytest.raises(InvalidInput, match="cannot be written as JSON"):
        kind.encode(10**5000)


@pytest.mark.parametrize("input", [object(), "\ud800", {1, object()}, {object(): 1}])
async def test_what_is_no_json_is_refused(client: Client, input: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be written as JSON"):
        await client.pool(POOL).run("Echo", input)


@pytest.mark.parametrize(
    ("given", "asked"),
    [({"batch": True}, {"batch": 1}), ({"priority": 1}, {"priority": True}), ({"timeout": 1.0}, {"timeout": True})],
)
def test_what_equals_something_right_is_looked_at_all_the_same(given: dict[str, Any], asked: dict[str, Any]) -> None:
    new_request("p", Kind("Echo"), 1, **given)
    with pytest.raises(InvalidInput, match=f"{next(iter(asked))} is "):
        new_request("p", Kind("Echo"), 1, **asked)


def test_labels_that_can_be_read_once_are_those_of_each_task() -> None:
    requests = new_requests("p", Kind("Echo"), range(2), requires=(label for label in ["gpu", "big"]))
    assert [request.lane for request in requests] == ["normal+big+gpu"] * 2


def test_requests_are_alike_when_they_differ_by_their_envelopes_alone() -> None:
    one, other, third = (new_request("p", Kind("Echo"), 1, tenant=tenant) for tenant in "aab")
    assert one.alike is other.alike is not third.alike
    odd = RetryPolicy(attempts=2, on=[ValueError])  # type: ignore[arg-type]
    for options in ({"project": "x"}, {"retry": RetryPolicy(attempts=3)}, {"retry": odd}):
        assert new_request("p", Kind("Echo"), 1, tenant="a", **options).alike is one.alike
    assert new_request("p", Kind("Echo"), 1, tenant="a", key="k").alike is None


async def test_an_option_that_there_is_not_is_refused(client: Client) -> None:
    for wrong in ("delay_ms", "agent_type", "alike"):
        with pytest.raises(TypeError, match=wrong):
            await client.pool(POOL).submit("Echo", 1, **{wrong: 5})  # type: ignore[arg-type]


class Measure(msgspec.Struct):
    values: list[float | None] = []


@pytest.mark.parametrize(
    ("input", "path"),
    [
        (float("nan"), "$"),
        ({"a": [None, {"b": float("inf")}]}, "$.a[1].b"),
        (Measure([1.0, None, float("-inf")]), "$.values[2]"),
        ([msgspec.Raw(b"null"), float("nan")], "$[1]"),
    ],
)
async def test_no_number_becomes_null(client: Client, tiny: TinyPool, input: Any, path: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be written as JSON") as caught:
        await client.pool(POOL).run("Echo", input)
    assert caught.value.path == path
    assert await tiny.store.connection.redis.keys("task:*") == []


@pytest.mark.parametrize("input", [None, {"null": [1.5, None]}, Measure([None]), "null", msgspec.Raw(b"[null]")])
def test_null_is_no_odd_number(input: Any) -> None:
    assert bytes(UNTYPED.encode(input)) == msgspec.json.encode(input)


async def test_refusals_leave_no_task(client: Client, tiny: TinyPool) -> None:
    pool = client.pool(POOL)
    with pytest.raises(UnknownAgentType, match='Did you mean "Echo"'):
        await pool.run("Ech", 1)
    with pytest.raises(InputTooLarge):
        await pool.run("Echo", "x" * 200_000)
    with pytest.raises(UnknownAgent):
        await pool.agent("nobody").run(1)
    with pytest.raises(InvalidInput):
        await pool.run("Echo", 1, tenant="a b")
    for timeout in (0, -1, float("nan"), "5"):
        with pytest.raises(InvalidInput):
            await pool.run("Echo", 1, timeout=timeout)  # type: ignore[arg-type]
    assert await tiny.store.connection.redis.keys("task:*") == []


async def test_a_full_queue(redis_url: str) -> None:
    async with tiny_pool(redis_url, POOL, max_queued=1) as tiny:
        client = RedisClient(tiny.store)
        await client.pool(POOL).submit("Echo", 1)
        with pytest.raises(QueueFull):
            await client.pool(POOL).run("Echo", 2)
        await client.close()


class Odd(Agent):
    async def run(self, ctx: Context, input: Any) -> Diff | Review:  # two structs that nothing tells apart
        raise NotImplementedError


async def test_a_class_whose_result_cannot_come_from_json(client: Client) -> None:
    with pytest.raises(ConfigError, match="result type"):
        client.pool(POOL).agent("x", Odd)


# -- what may become of a task ----------------------------------------------------------------------------------


async def test_the_agent_raises(client: Client, tiny: TinyPool) -> None:
    async def fail(input: Any) -> None:
        raise ValueError(f"no {input}")

    await tiny.add_worker(handler=fail)
    with pytest.raises(TaskFailed) as caught:
        await client.pool(POOL).run("Echo", 1, timeout=5)
    assert (caught.value.type, caught.value.message) == ("ValueError", "no 1")
    assert caught.value.traceback
    assert caught.value.task_id.startswith(f"{POOL}/")


async def test_the_worker_refuses_the_input(client: Client, tiny: TinyPool) -> None:
    async def refuse(input: Any) -> None:
        raise InvalidInput("Expected `str`, got `int`", "$.path")

    await tiny.add_worker(handler=refuse)
    with pytest.raises(InvalidInput) as caught:
        await client.pool(POOL).run("Echo", {"path": 1}, timeout=5)
    assert caught.value.path == "$.path"


async def test_it_takes_longer_than_its_timeout(client: Client, gate: Gate) -> None:
    with pytest.raises(TaskTimedOut, match="its time was over"):
        await client.pool(POOL).run("Echo", 1, timeout=0.1)


async def test_nobody_takes_it_in_time(client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentpool.client.requests.RUN_MARGIN_S", 0.1)
    with pytest.raises(TaskTimedOut, match="before any agent took it"):
        await client.pool(POOL).run("Echo", 1, timeout=0.1)
    assert (await client.pool(POOL).stats()).queued_tasks == 0


async def test_its_worker_does_not_stop_it_in_time(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentpool.client.requests.RUN_MARGIN_S", 0.1)
    await tiny.add_worker("w1", works=False)
    running = asyncio.ensure_future(client.pool(POOL).run("Echo", 1, timeout=0.3))
    await wait_until(lambda: _queued(client, 1))
    await tiny.store.tasks.exchange(POOL, "w1", 1, room=1)
    with pytest.raises(TaskTimedOut, match="while it ran"):
        await running
    view = await tiny.store.workers.view(POOL, "w1")
    assert view
    assert len(view.cancels) == 1


async def test_it_finishes_in_the_moment_of_the_timeout(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiny.add_worker()

    async def late(*_: object) -> None:
        await asyncio.sleep(0.2)
        raise TimeoutError

    monkeypatch.setattr(client.backend.replies, "wait", late)
    assert await client.pool(POOL).run("Echo", 1, timeout=5) == 1


async def _queued(client: Client, count: int) -> bool:
    return (await client.pool(POOL).stats()).queued_tasks == count


async def test_it_is_cancelled_while_it_waits_and_while_it_runs(client: Client, tiny: TinyPool) -> None:
    waiting = await client.pool(POOL).submit("Echo", 1)
    assert await waiting.cancel() is True
    with pytest.raises(TaskCancelled):
        await waiting.result(5)
    gate = Gate()
    await tiny.add_worker(handler=gate)
    running = await client.pool(POOL).submit("Echo", 2)
    await wait_until(lambda: gate.entered)
    assert (await running.info())["status"] == "leased"
    assert await running.cancel() is True
    with pytest.raises(TaskCancelled):
        await running.result(5)


async def test_cancelling_the_caller_cancels_the_task(client: Client, gate: Gate) -> None:
    running = asyncio.ensure_future(client.pool(POOL).run("Echo", 1))
    await wait_until(lambda: gate.entered)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await wait_until(lambda: gate.left, message="the task is cancelled")


@pytest.mark.parametrize("how", ["run", "submit"])
async def test_cancelling_at_any_moment_leaves_no_task(client: Client, tiny: TinyPool, how: str) -> None:
    await tiny.add_worker(works=False)
    for turns in range(15):
        ask = getattr(client.pool(POOL), how)("Echo", 1)
        asking = asyncio.ensure_future(ask)
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        (done,) = await asyncio.gather(asking, return_exceptions=True)
        if not isinstance(done, BaseException):
            await done.cancel()
    await wait_until(lambda: _queued(client, 0))


async def test_cancelling_a_wait_for_a_result_leaves_the_task_alone(client: Client, gate: Gate) -> None:
    task = await client.pool(POOL).submit("Echo", 1)
    first, second = (asyncio.ensure_future(task.result()) for _ in range(2))
    await wait_until(lambda: gate.entered)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gate.open.set()
    assert await asyncio.wait_for(second, 5) == 1


async def test_the_worker_dies_and_another_does_its_tasks(client: Client, tiny: TinyPool, gate: Gate) -> None:
    agent = await client.pool(POOL).spawn("Echo", timeout=5)
    running = [asyncio.ensure_future(each) for each in (agent.run(1), client.pool(POOL).run("Echo", 2))]
    await wait_until(lambda: gate.entered == 2)
    worker: TinyWorker = tiny.workers[0]
    worker._loop.cancel() if worker._loop else None
    await tiny.store.workers.reap(POOL, "w1", proof="owner", authority="master-1", reason="killed by SIGKILL")
    await tiny.add_worker("w2")
    assert await asyncio.wait_for(asyncio.gather(*running), 5) == [1, 2]


async def test_the_agent_is_terminated(client: Client, gate: Gate) -> None:
    agent = await client.pool(POOL).spawn("Echo", timeout=5)
    running = [asyncio.ensure_future(agent.run(number)) for number in range(3)]
    await wait_until(lambda: gate.entered)
    await asyncio.sleep(0.05)
    await agent.terminate()
    for each in running:
        with pytest.raises(AgentTerminated):
            await each
    with pytest.raises(AgentTerminated):
        await agent.run(4)


async def test_the_outcome_is_forgotten(client: Client, tiny: TinyPool) -> None:
    with pytest.raises(UnknownTask):
        await client.pool(POOL).task(f"{POOL}/nothing").result(5)
    task = await client.pool(POOL).submit("Echo", 1)
    waiting = asyncio.ensure_future(task.result(5))
    await asyncio.sleep(0.05)
    await tiny.store.connection.redis.flushall()
    with pytest.raises(UnknownTask):
        await waiting


# -- how the answer comes back ----------------------------------------------------------------------------------


async def test_nothing_depends_on_publishing(redis_url: str) -> None:
    """A user that may not subscribe still gets every answer, and no slower than the quick ticks."""
    async with tiny_pool(redis_url) as tiny:
        redis = tiny.store.connection.redis
        await redis.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "-subscribe", "-publish")
        try:
            await tiny.add_worker()
            async with connect(redis_url.replace("unix://", "unix://mute:pw@")) as client:
                agent = await client.pool(POOL).spawn("Echo", timeout=5)
                started = asyncio.get_running_loop().time()
                assert await asyncio.gather(*(client.pool(POOL).run("Echo", n) for n in range(50))) == list(range(50))
                assert await agent.run(1) == 1
                assert asyncio.get_running_loop().time() - started < 3
                await agent.terminate()
        finally:
            await redis.execute_command("ACL", "DELUSER", "mute")


async def test_a_lost_reply_is_found_at_the_next_tick(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    await client.pool(POOL).run("Echo", 0)
    client.backend.replies._subscription._on_message = lambda *_: None
    assert await asyncio.wait_for(client.pool(POOL).run("Echo", 1), 2) == 1


async def test_many_lost_replies_are_found_in_turn(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentpool.client.replies.TICK_S", 0.05)
    monkeypatch.setattr("agentpool.client.replies.LOOKS_PER_TICK", 3)
    await tiny.add_worker()
    await client.pool(POOL).run("Echo", 0)
    client.backend.replies._subscription._on_message = lambda *_: None
    calls = [asyncio.create_task(client.pool(POOL).run("Echo", number)) for number in range(10)]
    assert await asyncio.wait_for(asyncio.gather(*calls), 5) == list(range(10))
    assert client.backend.replies._tasks == {}


async def test_those_who_wait_no_more_are_forgotten(client: Client, tiny: TinyPool) -> None:
    tasks = await client.pool(POOL).submit_many("Echo", range(3))
    waiting = [asyncio.create_task(task.result()) for task in tasks * 2]
    await asyncio.sleep(0)
    for wait in waiting[:5]:
        wait.cancel()
    replies = client.backend.replies
    await wait_until(lambda: [*replies._tasks] == [tasks[2].id])
    await tiny.add_worker()
    assert await waiting[5] == 2, "another who waited for the same left"
    assert await asyncio.gather(*(task.result(5) for task in tasks)) == [0, 1, 2]
    assert replies._tasks == {}
    assert not replies._unsent


async def test_the_subscription_breaks_and_comes_back(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    await client.pool(POOL).run("Echo", 0)
    await wait_until(lambda: client.backend.replies._subscription.is_up)
    await tiny.store.connection.redis.client_kill_filter(_type="pubsub")
    assert await asyncio.wait_for(client.pool(POOL).run("Echo", 1), 2) == 1
    await wait_until(lambda: client.backend.replies._subscription.is_up)
    assert await client.pool(POOL).run("Echo", 2) == 2


async def test_messages_of_a_later_release_are_passed_over(client: Client, tiny: TinyPool) -> None:
    await tiny.add_worker()
    await client.pool(POOL).run("Echo", 0)
    await wait_until(lambda: client.backend.replies._subscription.is_up)
    channel = tiny.store.keys.channel_prefix + client.backend.replies.reply_to
    for text in ('{"type": "something_new"}', "nonsense", '{"type": "task_done", "task_id": "p/unknown"}'):
        assert await tiny.store.connection.redis.publish(channel, text) == 1
    assert await client.pool(POOL).run("Echo", 1) == 1


async def test_redis_is_away_while_a_result_is_awaited(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await client.pool(POOL).submit("Echo", 1)

    async def away(*_: object) -> None:
        raise RedisUnavailable("Redis does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(client.store.tasks, "settled", away)
        with pytest.raises(RedisUnavailable):
            await task.result(1.0)
        patch.setattr("agentpool.client.replies.OUTAGE_S", 0.2)
        with pytest.raises(RedisUnavailable):
            await asyncio.wait_for(task.result(), 5)
        patch.setattr("agentpool.client.replies.OUTAGE_S", 30)
        waiting = asyncio.ensure_future(task.result(10))
        await asyncio.sleep(0.3)
    await tiny.add_worker()
    assert await waiting == 1, "Redis is back in time"


async def test_what_has_a_key_is_not_withdrawn_when_redis_goes_away(
    client: Client, tiny: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = client.store.tasks.submit

    async def and_lose_the_answer(*arguments: Any, **options: Any) -> None:
        await submit(*arguments, **options)
        raise RedisUnavailable("Redis does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(client.store.tasks, "submit", and_lose_the_answer)
        with pytest.raises(RedisUnavailable):
            await client.pool(POOL).submit("Echo", 1, key="order-1")
    again = await client.pool(POOL).submit("Echo", 1, key="order-1")
    await client.cleanup.close()
    await tiny.add_worker()
    assert await again.result(5) == 1


async def test_closing_tells_those_who_wait(redis_url: str, tiny: TinyPool) -> None:
    async with connect(redis_url) as client:
        task = await client.pool(POOL).submit("Echo", 1)
        waiting = [asyncio.ensure_future(task.result()) for _ in range(2)]
        await asyncio.sleep(0.05)
    for each in waiting:
        with pytest.raises(PoolClosed, match=r"closed while the result of .* was waited for; the task goes on\. Open"):
            await each
    assert (await tiny.store.tasks.info(task.id))["status"] == "queued"


@pytest.mark.parametrize("ordered", [True, False])
async def test_closing_ends_a_map(redis_url: str, tiny: TinyPool, ordered: bool) -> None:
    async def take_all(client: Client) -> None:
        async for _ in client.pool(POOL).map("Echo", range(3), ordered=ordered):
            pass

    async with connect(redis_url) as client:
        taking = asyncio.ensure_future(take_all(client))
        await wait_until(lambda: len(client.backend.replies._tasks) == 3)  # type: ignore[attr-defined]
    with pytest.raises(PoolClosed):
        await taking


async def test_closing_cancels_what_is_run(redis_url: str, tiny: TinyPool, gate: Gate) -> None:
    async with connect(redis_url) as client:
        running = asyncio.ensure_future(client.pool(POOL).run("Echo", 1))
        await wait_until(lambda: gate.entered)
    with pytest.raises(PoolClosed, match=r"closed while task .* was not finished; it was cancelled\. Open"):
        await running
    await wait_until(lambda: gate.left, message="the task is cancelled")


async def test_who_is_cancelled_while_the_client_closes_is_cancelled(redis_url: str, tiny: TinyPool) -> None:
    async with connect(redis_url) as client:
        running = asyncio.ensure_future(client.pool(POOL).run("Echo", 1))
        await wait_until(lambda: _queued(client, 1))
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await tiny.store.pools.observe(POOL)).waiting_tasks == 0


async def test_a_batch_task_costs_no_other_call_than_its_script(tiny: TinyPool, client: Client) -> None:
    redis = tiny.store.connection.redis
    await client.pool(POOL).submit("Echo", 1, batch=True)
    await redis.config_resetstat()
    await client.pool(POOL).submit("Echo", 1, batch=True)
    assert "cmdstat_hgetall" not in await redis.info("commandstats")


def test_deaths_of_workers_are_an_error_of_their_own() -> None:
    said = Outcome(
        status=TaskStatus.LOST, process_id="w9", error=TaskError(message="its worker died 3 times"), attempts=0
    )
    with pytest.raises(WorkerLost, match="its worker died 3 times") as caught:
        result_of(f"{POOL}/x", UNTYPED, said)
    error = caught.value
    assert isinstance(error, TaskFailed), "who handles what failed handles this too"
    assert (error.code, error.task_id, error.process_id, error.type) == ("WORKER_LOST", f"{POOL}/x", "w9", "WorkerLost")
