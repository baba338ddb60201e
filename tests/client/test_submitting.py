"""Callers that submit one task each share calls, and each gets its own answer."""

import asyncio

import pytest
from support.wait import wait_until

from agentpool.client.kinds import Kind
from agentpool.client.requests import Request, new_request
from agentpool.client.submitting import CALLS_AT_ONCE, Gathering
from agentpool.errors import QueueFull, RedisUnavailable


class Server:
    """Takes calls when it is told to; `bound` is how many tasks it accepts."""

    def __init__(self, bound: int = 1000) -> None:
        self.calls: list[list[str]] = []
        self.accepted: set[str] = set()
        self.bound, self.answers = bound, asyncio.Event()
        self.is_away = False

    async def send(self, requests: list[Request]) -> None:
        self.calls.append([request.task_id for request in requests])
        await self.answers.wait()
        if self.is_away:
            raise RedisUnavailable("away")
        fresh = {request.task_id for request in requests} - self.accepted
        if len(self.accepted) + len(fresh) > self.bound:
            raise QueueFull("The queue", len(self.accepted), self.bound)
        self.accepted |= fresh


def _ask(gathering: Gathering, count: int, **options: object) -> list["asyncio.Task[None]"]:
    requests = [new_request("p", Kind("R"), number, **options) for number in range(count)]
    return [asyncio.create_task(gathering.submit(request)) for request in requests]


async def test_what_comes_in_one_turn_or_during_a_call_goes_together() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    first = _ask(gathering, 10)
    await _turns()
    assert [len(call) for call in server.calls] == [10]
    second = _ask(gathering, 40)
    await _turns()
    assert [len(call) for call in server.calls] == [10]
    server.answers.set()
    await asyncio.gather(*first, *second)
    assert [len(call) for call in server.calls] == [10, 40]
    assert len(server.accepted) == 50


async def test_only_what_is_alike_goes_together() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = [*_ask(gathering, 3, tenant="a"), *_ask(gathering, 3, tenant="b"), *_ask(gathering, 3, priority=1)]
    server.answers.set()
    await asyncio.gather(*asked)
    assert [len(call) for call in server.calls] == [3, 3, 3]


async def test_each_gets_its_own_refusal() -> None:
    server = Server(bound=4)
    asked = _ask(Gathering(server.send, 1.0), 6)
    server.answers.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(result, QueueFull) for result in results] == [False] * 4 + [True] * 2


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
    assert [len(call) for call in server.calls] == [1, 1]
    assert second[0].cancelled()
    assert not gathering._next


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
        async def send(self, requests: list[Request]) -> None:
            if len(requests) == 1 and bytes(requests[0].envelope.input) == b"1":
                raise ValueError("broken")
            await super().send(requests)

    server = Broken(bound=3)
    gathering = Gathering(server.send, 1.0)
    first = _ask(gathering, 4)  # together they are refused
    await _turns()
    second = _ask(gathering, 1)
    server.answers.set()
    async with asyncio.timeout(1):
        told = await asyncio.gather(*first, *second, return_exceptions=True)
    assert [type(error) for error in told] == [type(None), ValueError, type(None), type(None), QueueFull]
    assert not gathering._next


async def test_of_what_is_not_alike_a_few_calls_are_under_way_and_the_others_grow() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    tenants = [f"t{number}" for number in range(6)]
    asked = [task for tenant in tenants for task in _ask(gathering, 1, tenant=tenant)]
    await _turns()
    assert len(server.calls) == CALLS_AT_ONCE
    asked += [task for tenant in tenants[CALLS_AT_ONCE:] for task in _ask(gathering, 4, tenant=tenant)]
    await _turns()
    server.answers.set()
    await asyncio.gather(*asked)
    assert [len(call) for call in server.calls] == [1] * CALLS_AT_ONCE + [5] * (6 - CALLS_AT_ONCE)


async def test_where_the_server_is_slow_nobody_waits_for_a_turn_for_long() -> None:
    server = Server()
    gathering = Gathering(server.send, 1.0)
    asked = [task for number in range(6) for task in _ask(gathering, 1, tenant=f"t{number}")]
    await wait_until(lambda: len(server.calls) == 6, timeout=2)
    server.answers.set()
    await asyncio.gather(*asked)
    again = _ask(gathering, 2, tenant="t0")
    await asyncio.gather(*again)
    assert len(server.calls) == 7, "turns are counted as before"
