"""Callers that submit one task each share calls, and each gets its own answer."""

import asyncio

import pytest
from support.wait import wait_until

from agentpool.client import submitting
from agentpool.client.kinds import Kind
from agentpool.client.requests import Request, new_request
from agentpool.client.submitting import CALLS_AT_ONCE, Gathering
from agentpool.clock import monotonic
from agentpool.errors import AgentPoolError, QueueFull, RedisUnavailable
from agentpool.store.tasks import GROUPS_PER_CALL, TASKS_PER_CALL


class Server:
    """Takes calls when it is told to; `bound` is how many tasks it accepts."""

    def __init__(self, bound: int = 1000) -> None:
        self.calls: list[list[int]] = []
        self.accepted: set[str] = set()
        self.bound, self.answers = bound, asyncio.Event()
        self.is_away = False

    async def send(self, groups: list[list[Request]]) -> list[AgentPoolError | None]:
        self.calls.append([len(group) for group in groups])
        await self.answers.wait()
        if self.is_away:
            raise RedisUnavailable("away")
        return [self.accept({request.task_id for request in group}) for group in groups]

    def accept(self, ids: set[str]) -> AgentPoolError | None:
        if len(self.accepted | ids) > self.bound:
            return QueueFull("The queue", len(self.accepted), self.bound)
        self.accepted |= ids
        return None


def _ask(gathering: Gathering, count: int, **options: object) -> list["asyncio.Task[None]"]:
    requests = [new_request("p", Kind("R"), number, **options) for number in range(count)]
    return [asyncio.create_task(gathering.submit(request)) for request in requests]


async def test_what_comes_in_one_turn_or_during_a_call_goes_together() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    first = _ask(gathering, 10)
    await _turns()
    assert server.calls == [[10]]
    second = _ask(gathering, 40)
    await _turns()
    assert server.calls == [[10]]
    server.answers.set()
    await asyncio.gather(*first, *second)
    assert server.calls == [[10], [40]]
    assert len(server.accepted) == 50


async def test_what_is_alike_is_one_group_of_a_call() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = [*_ask(gathering, 3, tenant="a"), *_ask(gathering, 3, tenant="b"), *_ask(gathering, 3, priority=1)]
    server.answers.set()
    await asyncio.gather(*asked)
    assert server.calls == [[3, 3, 3]]


async def test_each_gets_its_own_refusal() -> None:
    server = Server(bound=4)
    asked = _ask(Gathering(server.send, 1.0), 6)
    server.answers.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(result, QueueFull) for result in results] == [False] * 4 + [True] * 2


async def test_who_was_cancelled_is_not_asked_for_alone() -> None:
    server = Server(bound=2)
    asked = _ask(Gathering(server.send, 1.0), 3)
    await _turns()
    asked[2].cancel()
    await _turns()
    server.answers.set()
    await asyncio.gather(*asked, return_exceptions=True)
    assert server.calls == [[3], [1], [1]]
    assert [task.cancelled() for task in asked] == [False, False, True]


async def test_a_server_that_is_away_is_waited_for_once_by_those_who_are_asked_for_alone() -> None:
    class Leaving(Server):
        async def send(self, groups: list[list[Request]]) -> list[AgentPoolError | None]:
            answer = await super().send(groups)
            self.is_away = True
            return answer

    server = Leaving(bound=2)
    asked = _ask(Gathering(server.send, 1.0), 3)
    server.answers.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in told] == [RedisUnavailable] * 3
    assert server.calls == [[3], [1]]


async def test_all_are_told_that_the_server_is_away_and_the_next_begins_anew() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = _ask(gathering, 3)
    server.is_away = True
    server.answers.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [RedisUnavailable] * 3
    server.is_away = False
    (again,) = _ask(gathering, 1)
    await again


@pytest.mark.parametrize("place", [0, 1])
async def test_a_caller_that_is_cancelled_holds_nobody_up(place: int) -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = _ask(gathering, 3)
    await _turns()
    asked[place].cancel()
    await _turns()
    assert not asked[place].done(), "its task is on its way: it can be withdrawn when that has come"
    server.answers.set()
    await asyncio.gather(*asked, return_exceptions=True)
    assert [task.cancelled() for task in asked] == [place == 0, place == 1, False]
    assert len(server.accepted) == 3
    (again,) = _ask(gathering, 1)
    await again


async def test_a_caller_that_is_cancelled_in_time_sends_nothing() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    first = _ask(gathering, 1)
    await _turns()
    second = _ask(gathering, 2)
    await _turns()
    second[0].cancel()
    await _turns()
    server.answers.set()
    await asyncio.gather(*first, *second, return_exceptions=True)
    assert server.calls == [[1], [1]]
    assert second[0].cancelled()
    await _turns()
    assert not gathering._lines


async def test_a_call_without_an_end_holds_a_cancelled_caller_for_a_while_only() -> None:
    server = Server()
    (asked,) = _ask(Gathering(server.send, 0.02), 1)
    await _turns()
    asked.cancel()
    await asyncio.wait([asked], timeout=2)
    assert asked.cancelled()
    server.answers.set()


async def _turns() -> None:
    """Let what is ready go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_error_that_is_none_of_ours_reaches_those_whose_it_is() -> None:
    class Broken(Server):
        async def send(self, groups: list[list[Request]]) -> list[AgentPoolError | None]:
            if any(bytes(request.envelope.input) == b"1" for group in groups for request in group):
                raise ValueError("broken")
            return await super().send(groups)

    server = Broken(bound=3)
    gathering = Gathering(server.send, 1.0)
    first = _ask(gathering, 3)
    await _turns()
    second = _ask(gathering, 1, tenant="b") + _ask(gathering, 1)
    server.answers.set()
    async with asyncio.timeout(1):
        told = await asyncio.gather(*first, *second, return_exceptions=True)
    assert [type(error) for error in told] == [list, ValueError, list, list, QueueFull]
    await _turns()
    assert not gathering._lines


async def test_a_refused_group_leaves_the_others_of_its_call_alone() -> None:
    server = Server(bound=3)
    gathering = Gathering(server.send, 1.0)
    asked = [*_ask(gathering, 2, tenant="a"), *_ask(gathering, 2, tenant="b"), *_ask(gathering, 1, tenant="c")]
    server.answers.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in told] == [list] * 2 + [QueueFull] * 2 + [list]
    assert server.calls[0] == [2, 2, 1]


async def test_a_second_call_goes_while_one_is_under_way_only_when_it_is_full() -> None:
    server = Server()
    gathering = Gathering(server.send, 5.0)
    asked = _ask(gathering, 1)
    await _turns()
    asked += [task for number in range(GROUPS_PER_CALL - 1) for task in _ask(gathering, 1, tenant=f"t{number}")]
    await _turns()
    assert len(server.calls) == 1
    asked += _ask(gathering, 3 * TASKS_PER_CALL)
    server.answers.set()
    await asyncio.gather(*asked)
    assert sum(sum(call) for call in server.calls) == len(asked)
    assert all(len(call) <= GROUPS_PER_CALL and sum(call) <= TASKS_PER_CALL for call in server.calls)


async def test_a_second_call_goes_as_soon_as_there_is_enough_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "TURN_S", 60.0)
    server = Server()
    gathering = Gathering(server.send, 5.0)
    asked = _ask(gathering, 1)
    await _turns()
    asked += _ask(gathering, TASKS_PER_CALL - 1)
    await _turns()
    assert len(server.calls) == 1
    asked += _ask(gathering, 1)
    await _turns()
    assert [sum(call) for call in server.calls] == [1, TASKS_PER_CALL]
    server.answers.set()
    await asyncio.gather(*asked)


async def test_while_the_server_is_silent_ever_fewer_calls_begin() -> None:
    server = Server()
    gathering = Gathering(server.send, 5.0)
    asked = []
    until = monotonic() + 1.0
    while monotonic() < until:
        asked += _ask(gathering, 1)
        await asyncio.sleep(0.01)
    assert 3 <= len(server.calls) <= 8
    server.answers.set()
    await asyncio.gather(*asked)


async def test_of_what_fills_calls_a_few_are_under_way() -> None:
    server = Server()
    asked = _ask(Gathering(server.send, 5.0), 3 * TASKS_PER_CALL)
    await _turns()
    assert [sum(call) for call in server.calls] == [TASKS_PER_CALL] * CALLS_AT_ONCE
    server.answers.set()
    await asyncio.gather(*asked)


async def test_where_the_server_is_slow_nobody_waits_for_a_turn_for_long() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = _ask(gathering, 1)
    for count in (2, 3):
        await _turns()
        asked += _ask(gathering, 1)
        await wait_until(lambda count=count: len(server.calls) == count, timeout=2)
    server.answers.set()
    await asyncio.gather(*asked)
    await asyncio.gather(*_ask(gathering, 2))
    assert len(server.calls) == 4, "turns are counted as before"


async def test_what_may_wait_for_different_times_does_not_share_a_call() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = [*_ask(gathering, 2, timeout=5.0), *_ask(gathering, 2, timeout=6.0)]
    await _turns()
    assert server.calls == [[2], [2]]
    server.answers.set()
    await asyncio.gather(*asked)
