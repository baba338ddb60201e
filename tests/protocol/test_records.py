"""Records: a task before and after its outcome, hashes as Redis returns them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpool.errors import DamagedRecord
from agentpool.protocol.codec import valid_name
from agentpool.protocol.records import AgentRecord, PoolInfo, WorkerRecord, decode_hash, plain
from agentpool.protocol.states import AgentStatus, TaskStatus, WorkerStatus
from agentpool.protocol.tasks import Outcome, TaskEnvelope, TaskError, TaskHeader, decode_task, encode_task

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
headers = st.builds(
    TaskHeader,
    reply_to=st.one_of(st.just(""), names.map(lambda name: f"client:{name}:replies")),
    agent_name=st.one_of(st.just(""), names),
    agent_type=st.one_of(st.just(""), st.from_regex(r"[^\W\d]\w{0,20}", fullmatch=True)),
    tenant=names,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, width=64) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: value != float("inf") and value != float("-inf"))


@given(headers, values, st.integers(0, 2**40), st.text())
def test_task_comes_back_as_it_was_submitted(header: TaskHeader, value: object, timeout: int, project: str) -> None:
    raw = msgspec.json.encode(value)
    encoded = encode_task(header, TaskEnvelope(msgspec.Raw(raw), timeout_ms=timeout, project=project))
    assert encoded.startswith(b"task ")
    assert encoded.count(b"\n", 0, encoded.index(b"{")) == 1, "one line of plain words"
    for text in (encoded, encoded.decode()):
        decoded = decode_task(text)
        assert isinstance(decoded, tuple)
        assert decoded[0] == header
        assert bytes(decoded[1].input) == raw, "byte by byte"
        assert (decoded[1].timeout_ms, decoded[1].project) == (timeout, project)


@given(values, st.text(), st.sampled_from([TaskStatus.SUCCEEDED, TaskStatus.FAILED]), st.booleans())
def test_outcome_comes_back_as_it_was_recorded(value: object, text: str, status: TaskStatus, failed: bool) -> None:
    outcome = Outcome(
        status=status,
        process_id="w1",
        agent_id="p/a1",
        result=msgspec.Raw(msgspec.json.encode(value)),
        error=TaskError(type="E", message=text, traceback=text, path="$.x") if failed else None,
        duration_ms=1.25,
        tokens=2**53,
    )
    encoded = msgspec.json.encode(outcome)
    assert encoded.startswith(b"{"), "the first byte tells it from a task"
    assert decode_task(encoded) == outcome
    assert decode_task(encoded.decode()) == outcome


def test_outcome_of_a_script_is_read() -> None:
    decoded = decode_task('{"error":{"message":"killed","type":"WorkerLost"},"process_id":"","status":"worker_lost"}')
    assert isinstance(decoded, Outcome)
    assert decoded.status is TaskStatus.LOST
    assert bytes(decoded.result) == b"null"
    assert decoded.error == TaskError(type="WorkerLost", message="killed")


@pytest.mark.parametrize("text", ["", "task\n{}", "task - - - t\n", "task - - - t\n{", '{"status":"no such"}', "{}"])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises((msgspec.MsgspecError, TypeError)):
        decode_task(text)


def test_no_name_can_be_taken_for_the_absent_one() -> None:
    assert not valid_name("-")


# -- hashes -----------------------------------------------------------------------------------------------------


def test_hash_is_decoded_from_text() -> None:
    record = decode_hash(
        WorkerRecord,
        {
            "process_id": "w1",
            "pool_name": "p",
            "status": "ready",
            "capacity": "10",
            "cpu_percent": "12.5",
            "memory_bytes": str(2**53),
            "host": "12",
            "master": "",
            "idle_since": "",
            "of a later release": "x",
        },
    )
    assert record == WorkerRecord(
        process_id="w1",
        pool_name="p",
        status=WorkerStatus.READY,
        capacity=10,
        cpu_percent=12.5,
        memory_bytes=2**53,
        host="12",
    )


@pytest.mark.parametrize("text", ["null", "true", "1", "1.5", "[]", "-", " x ", "ü"])
def test_text_fields_stay_text(text: str) -> None:
    fields = {"agent_id": "p/a1", "pool_name": "p", "agent_type": "R", "status": "idle", "last_error": text}
    assert decode_hash(AgentRecord, fields).last_error == text


def test_hash_without_what_it_needs_is_refused() -> None:
    with pytest.raises(DamagedRecord):
        decode_hash(AgentRecord, {"agent_id": "p/a1"})
    with pytest.raises(DamagedRecord):
        decode_hash(AgentRecord, {"agent_id": "p/a1", "pool_name": "p", "agent_type": "R", "status": "asleep"})
    with pytest.raises(DamagedRecord):
        decode_hash(PoolInfo, {"pool_name": "p", "max_workers": "many"})


def test_plain_has_json_types_in_the_order_of_the_fields() -> None:
    record = AgentRecord(agent_id="p/a1", pool_name="p", agent_type="R", status=AgentStatus.IDLE)
    assert list(plain(record))[:4] == ["agent_id", "pool_name", "agent_type", "status"]
    assert plain(record)["status"] == "idle"
    assert type(plain(record)["status"]) is str
