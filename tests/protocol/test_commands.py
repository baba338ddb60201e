"""Messages on channels: closed unions that refuse what they do not know."""

import msgspec
import pytest

from agentpool.protocol.commands import (
    AgentEnded,
    AgentReady,
    Cancel,
    Drain,
    Shutdown,
    Spawn,
    TasksDone,
    Terminate,
    Wake,
    decode_command,
    decode_reply,
)
from agentpool.protocol.states import TaskStatus
from agentpool.protocol.tasks import Outcome

COMMANDS = [
    Spawn(process_id="w1", version=3, agent_id="p/a1", agent_type="R", incarnation=2, tenant="acme", project="x"),
    Terminate(process_id="w1", version=3, agent_id="p/a1"),
    Drain(process_id="w1"),
    Shutdown(process_id="w1"),
    Wake(process_id="w1"),
    Wake(process_id="w1", agent_id="p/a1"),
    Cancel(process_id="w1", task_id="p/t1"),
]
REPLIES = [
    AgentReady(agent_id="p/a1", process_id="w1"),
    AgentEnded(agent_id="p/a1", status="failed", detail="ü"),
    TasksDone(tasks=(("p/t1", Outcome(TaskStatus.SUCCEEDED, result=msgspec.Raw(b"[1]"))), ("p/t2", None))),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_comes_back(command) -> None:
    raw = msgspec.json.encode(command)
    assert decode_command(raw) == command
    assert decode_command(raw.decode()) == command
    assert msgspec.json.decode(raw)["type"] == type(command).__name__.lower()


@pytest.mark.parametrize("reply", REPLIES)
def test_reply_comes_back(reply) -> None:
    assert decode_reply(msgspec.json.encode(reply)) == reply


def test_reply_without_an_outcome_says_so() -> None:
    reply = decode_reply('{"type":"tasks_done","tasks":[["p/t1",null]]}')
    assert isinstance(reply, TasksDone)
    assert reply.tasks == (("p/t1", None),)


def test_a_result_in_a_reply_stays_undecoded() -> None:
    reply = decode_reply('{"type":"tasks_done","tasks":[["p/t1",{"status": "succeeded", "result":[ ]}]]}')
    assert isinstance(reply, TasksDone)
    ((_, outcome),) = reply.tasks
    assert outcome is not None
    assert bytes(outcome.result) == b"[ ]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"type":"exec","process_id":"w1"}',
        '{"type":"Spawn","process_id":"w1"}',
        '{"type":"spawn","process_id":"w1"}',
        '{"type":"terminate","process_id":"w1","agent_id":7}',
        '{"type":"drain"}',
        '{"type":"drain","process_id":"w1","version":"3"}',
        '{"type":"agent_ready","agent_id":"p/a1","process_id":"w1"}',
        '{"type":"drain","process_id":"w1"',
    ],
)
def test_anything_else_is_no_command(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(text)


@pytest.mark.parametrize("text", ["", "{}", '{"type":"spawn"}', '{"type":"tasks_done"}', '{"type":"agent_ready"}'])
def test_anything_else_is_no_reply(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_reply(text)


def test_fields_of_a_later_release_are_passed_over() -> None:
    assert decode_command('{"type":"drain","process_id":"w1","deadline":3}') == Drain(process_id="w1")
