"""The commands about single tasks, dead letters, tenants and the audit."""

import asyncio
import json
import os
import pty
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.command import PROGRAM, Cli, Ran, refused, run_main, start
from support.tiny_pool import MASTER, POOL, TinyPool
from support.wait import wait_until

from agentpool.store.tasks import EndedTask


async def fail(input: Any) -> Any:
    """What an agent does that gets anything but numbers wrong."""
    if isinstance(input, int):
        return input
    raise ValueError(f"bad {input}")


async def submitted(cli: Cli, *words: str) -> str:
    """The id of a task that was handed in."""
    task_id: str = (await cli("submit", POOL, "Echo", *words, "--json")).document["task_id"]
    return task_id


# -- submit and tasks -------------------------------------------------------------------------------------------


async def test_submit_prints_the_id(cli: Cli, tiny: TinyPool) -> None:
    task_id = await submitted(cli, "--input", '{"a": 1}')
    assert task_id.startswith(f"{POOL}/")
    assert (await cli("tasks", "show", task_id, "--json")).document["status"] == "queued"
    await tiny.add_worker()
    ran = await cli("submit", POOL, "Echo", "--input", '"text"', "--wait")
    assert (ran.status, ran.out) == (0, "text\n")
    document = (await cli("--json", "submit", POOL, "Echo", "--input", "[1]", "--wait")).document
    assert document["result"] == [1]
    shown = (await cli("tasks", "show", document["task_id"], "--json")).document
    assert (shown["status"], shown["result"]) == ("succeeded", [1])
    sheet = (await cli("tasks", "show", document["task_id"])).out
    assert "result" in sheet
    assert "succeeded" in sheet
    assert (await cli("submit", POOL, "Echo", "--input", "1")).out.strip().startswith(f"{POOL}/")


async def test_a_task_that_never_ran_shows_no_attempt(cli: Cli, tiny: TinyPool) -> None:
    task_id = await submitted(cli, "--input", "1")
    await cli("tasks", "cancel", task_id)
    shown = (await cli("tasks", "show", task_id, "--json")).document
    assert (shown["status"], shown["attempts"]) == ("cancelled", 0)
    assert re.search(r"attempts +0\n", (await cli("tasks", "show", task_id)).out)


async def test_what_may_be_said_of_a_task(cli: Cli, tiny: TinyPool) -> None:
    delayed = await submitted(cli, "--input", "1", "--delay", "60", "--tenant", "acme", "--priority", "0")
    assert (await cli("tasks", "show", delayed, "--json")).document["status"] == "delayed"
    assert (await cli("stats", POOL, "--json")).document["delayed_tasks"] == 1
    assert "1 delayed, 0 dead" in (await cli("stats", POOL)).out
    by_key = await submitted(cli, "--input", "1", "--key", "order-1", "--retry-attempts", "5", "--timeout", "9")
    assert await submitted(cli, "--input", "1", "--key", "order-1") == by_key
    assert "IDEMPOTENCY" in (await cli("submit", POOL, "Echo", "--input", "2", "--key", "order-1", "--json")).err
    await submitted(cli, "--input", "1", "--batch", "--expires", "60", "--project", "x")
    lanes = await tiny.store.connection.redis.smembers(tiny.store.keys.lanes(POOL))
    assert lanes == {"normal", "batch"}
    words = ("submit", POOL, "Echo", "--input", "1")
    assert 'the label "gpu"' in refused(await cli(*words, "--requires", "gpu"))
    await cli("tenants", "set", POOL, "acme", "running=1")
    await submitted(cli, "--input", "1", "--tenant", "acme")
    said = refused(await cli(*words, "--tenant", "acme", "--when-limited", "reject"))
    assert "CONCURRENT_LIMIT" in said


async def test_cancel(cli: Cli, tiny: TinyPool) -> None:
    first, second = [await submitted(cli, "--input", "1") for _ in range(2)]
    assert (await cli("tasks", "cancel", first, "--json")).document == [{"task_id": first, "cancelled": True}]
    assert (await cli("tasks", "cancel", first, "--json")).document == [{"task_id": first, "cancelled": False}]
    assert "no: it was finished" in (await cli("tasks", "cancel", first)).out
    ran = await cli("tasks", "cancel", f"{POOL}/nothing", second, "--json")
    assert ran.status == 1
    assert json.loads(ran.out) == [{"task_id": second, "cancelled": True}]
    error = json.loads(ran.err)["error"]
    assert error["code"] == "UNKNOWN_TASK"
    assert error["message"].startswith("1 of 2 tasks are known.")


async def test_follow(cli: Cli, tiny: TinyPool, redis_url: str) -> None:
    go_on = asyncio.Event()

    async def work(_: object) -> None:
        await go_on.wait()

    worker = await tiny.add_worker(handler=work)
    task_id = await submitted(cli, "--input", "1")
    await wait_until(lambda: worker._runs)
    process = start(redis_url, "tasks", "follow", task_id, "--json")
    try:
        first = json.loads(await asyncio.to_thread(process.stdout.readline))  # type: ignore[union-attr]
        assert (first["type"], first["task_id"], first["detail"]) == ("task.started", task_id, worker.id)
        await tiny.store.tasks.report(POOL, worker.id, [(task_id, b'{"done":0.5}')])
        second = json.loads(await asyncio.to_thread(process.stdout.readline))  # type: ignore[union-attr]
        assert (second["type"], second["data"]) == ("task.progress", {"done": 0.5})
        go_on.set()
        out, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert (process.returncode, err) == (0, "")
        last = json.loads(out)
        assert (last["type"], last["detail"]) == ("task.finished", "succeeded")
    finally:
        process.kill()
        process.communicate()
    lines = (await cli("tasks", "follow", task_id)).out.splitlines()
    assert lines[0].endswith('  task.progress  {"done":0.5}'), "what was written stays while its outcome does"
    assert lines[1] == "task.finished  succeeded"


async def test_an_interrupted_wait_leaves_the_task(cli: Cli, tiny: TinyPool, redis_url: str) -> None:
    process = start(redis_url, "submit", POOL, "Echo", "--input", "1", "--wait")
    try:
        await wait_until(lambda: _queued(tiny))
        await asyncio.sleep(1)  # until then it may still be handing in the task, which would be withdrawn
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert (process.returncode, err) == (130, "")
        assert await _queued(tiny) == 1
    finally:
        process.kill()
        process.communicate()


async def _queued(tiny: TinyPool) -> int:
    return (await tiny.store.pools.observe(POOL)).waiting_tasks


# -- dead letters -----------------------------------------------------------------------------------------------


@pytest.fixture
async def dead(cli: Cli, tiny: TinyPool) -> list[str]:
    """Two dead letters: one of tenant acme that was tried three times, one of a task that was tried once."""
    worker = await tiny.add_worker("w1", handler=fail)
    worker.attempts = 3
    ids = [await submitted(cli, "--input", '"input"', "--tenant", "acme")]
    await wait_until(lambda: _dead(tiny, 1))
    worker.attempts = 1
    ids.append(await submitted(cli, "--input", "null"))
    await wait_until(lambda: _dead(tiny, 2))
    return ids


async def _dead(tiny: TinyPool, count: int) -> bool:
    return (await tiny.store.pools.observe(POOL)).dead == count


async def test_dead_letters_are_listed(cli: Cli, tiny: TinyPool, dead: list[str]) -> None:
    rows = (await cli("dead", "list", "--json")).document
    assert [row["task_id"] for row in rows] == dead
    assert (rows[0]["kind"], rows[0]["tenant"], rows[0]["agent_type"]) == ("failed", "acme", "Echo")
    assert (rows[0]["attempts"], rows[0]["error"]) == (3, "ValueError: bad input")
    assert "input" not in rows[0]

    async def ids(*words: str) -> list[str]:
        return [row["task_id"] for row in (await cli("dead", "list", *words, "--json")).document]

    assert await ids(POOL, "--limit", "1") == await ids("--tenant", "acme") == dead[:1]
    assert await ids("--type", "Other") == await ids("--older-than", "100") == []
    assert await ids("--type", "Echo", POOL) == dead
    text = (await cli("dead", "list")).out
    assert "ValueError: bad None" in text
    assert (await cli("dead", "list", "--tenant", "nobody")).out == "No dead letters.\n"
    assert "2 dead" in (await cli("stats", POOL)).out


async def test_a_dead_letter_shows_every_attempt(cli: Cli, tiny: TinyPool, dead: list[str]) -> None:
    shown = (await cli("dead", "show", dead[0], "--json")).document
    assert shown["input"] == "input"
    assert [tried["attempt"] for tried in shown["errors"]] == ["1", "2", "3"]
    assert {tried["process_id"] for tried in shown["errors"]} == {"w1"}
    assert {tried["error"]["message"] for tried in shown["errors"]} == {"bad input"}
    text = (await cli("dead", "show", dead[0])).out
    assert text.count("ValueError: bad input (worker w1)") == 3
    assert "Traceback" in text
    assert "agentpool dead list" in refused(await cli("dead", "show", f"{POOL}/nothing"))


async def test_a_dead_letter_shows_every_failed_start(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker("w1", works=False)
    task_id = await submitted(cli, "--input", "1")
    store = tiny.store
    assert await store.tasks.exchange(POOL, "w1", 1, room=1)
    outcome = (
        b'{"status":"failed","process_id":"w1","error":{"type":"AgentFailed","message":"no licence"},"attempts":0}'
    )
    ended = EndedTask(task_id, "", "unstarted", outcome)
    assert await store.tasks.exchange(POOL, "w1", 2, room=-1, ended=[ended])
    shown = (await cli("dead", "show", task_id, "--json")).document
    assert (shown["attempts"], shown["starts"], shown["errors"][0]["attempt"]) == (0, 1, "start 1")
    text = (await cli("dead", "show", task_id)).out
    assert "failed starts  1" in text
    assert "AgentFailed: no licence (worker w1)" in text
    assert (await cli("tasks", "show", task_id, "--json")).document["attempts"] == 0


async def test_dead_letters_are_replayed(cli: Cli, tiny: TinyPool, dead: list[str]) -> None:
    (row,) = (await cli("dead", "replay", dead[0], "--json")).document
    assert row["task_id"] == dead[0]
    assert (await cli("tasks", "show", row["new_task_id"], "--json")).document["task_id"] == row["new_task_id"]
    await wait_until(lambda: _dead(tiny, 2))
    ran = await cli("dead", "replay", dead[0], dead[1], "--json")
    assert ran.status == 1
    assert [row["task_id"] for row in json.loads(ran.out)] == dead[1:]
    assert json.loads(ran.err)["error"]["message"].startswith("1 of 2 tasks were submitted anew.")
    await wait_until(lambda: _dead(tiny, 2))
    rows = (await cli("dead", "replay", "--all", "--pool", POOL, "--tenant", "acme", "--json")).document
    assert len(rows) == 1
    await wait_until(lambda: _dead(tiny, 2))
    assert (await cli("dead", "replay", "--all", "--pool", POOL, "--type", "Other")).out == "No dead letters.\n"


async def test_dead_letters_are_thrown_away(cli: Cli, tiny: TinyPool, dead: list[str]) -> None:
    assert (await cli("dead", "purge", dead[0], "--json")).document == {"purged": 1}
    assert (await cli("dead", "purge", dead[0])).out == "0 dead letters thrown away.\n"
    assert (await cli("dead", "purge", "--all", "--pool", POOL, "--yes", "--json")).document == {"purged": 1}
    assert (await cli("dead", "list", "--json")).document == []


async def test_a_person_is_asked_first(tiny: TinyPool, dead: list[str], redis_url: str) -> None:
    mine, theirs = pty.openpty()
    try:
        for answer, status, left in ((b"n\n", 1, 2), (b"y\n", 0, 0)):
            command = [*PROGRAM, "dead", "purge", "--all", "--pool", POOL, "--redis-url", redis_url]
            done = await asyncio.create_subprocess_exec(*command, stdin=theirs, stdout=theirs, stderr=theirs)
            os.write(mine, answer)
            assert await asyncio.wait_for(done.wait(), 20) == status
            assert await _dead(tiny, left)
        said = os.read(mine, 65536).decode()
        assert "throw 2 dead letters away for good?" in said
        assert "agentpool: Nothing was done." in said
    finally:
        os.close(mine)
        os.close(theirs)


# -- tenants ----------------------------------------------------------------------------------------------------


async def test_tenants(cli: Cli, tiny: TinyPool) -> None:
    assert (await cli("tenants")).out == "No tenants.\n"
    await submitted(cli, "--input", "1", "--tenant", "acme")
    (row,) = (await cli("tenants", "--json")).document
    assert (row["pool_name"], row["tenant"], row["queued"]) == (POOL, "acme", 1)
    assert (await cli("--json", "tenants", POOL)).document == [row]
    assert (await cli("tenants", "--json", POOL)).document == [row]
    assert (await cli("tenants", "list", POOL, "--json")).document == [row]
    words = ("tenants", "set", POOL, "acme")
    after = (await cli(*words, "running=3", "weight=0.5", "--json")).document
    assert (after["limits"]["running"], after["limits"]["weight"]) == (3, 0.5)
    assert after["set_live"] == "running=3 weight=0.5"
    text = (await cli(*words, "weight=")).out
    assert "0/3" in text
    assert "running=3" in text
    assert "0/3" in (await cli("tenants", POOL)).out
    assert (await cli(*words, "running=", "--json")).document["set_live"] == ""
    assert (await cli("tenants", "--help")).status == (await cli("tenants", "set", "-h")).status == 0


# -- the audit --------------------------------------------------------------------------------------------------


def line(number: int, **fields: Any) -> str:
    base = {"at": 1000 * number, "task_id": f"{POOL}/t{number}", "status": "succeeded", "tenant": "default"}
    return json.dumps({**base, **fields}).replace("/", "\\/")


@pytest.fixture
def audit(cli: Cli, tiny: TinyPool, tmp_path: Path) -> Cli:
    """The command on a data directory with two files; of what is in them, Redis still has some."""
    folder = tmp_path / "audit" / POOL
    folder.mkdir(parents=True)
    old, new = folder / f"0000000001-{MASTER}.jsonl", folder / f"0000000002-{MASTER}.jsonl"
    old.write_text(f"{line(1)}\n{line(2, tenant='acme', agent_type='Echo')}\n")
    new.write_text(f"{line(3)}\n{line(4, status='failed', error='ValueError: no')}\n" + line(5)[:20])

    async def call(*words: str) -> Ran:
        redis, key = tiny.store.connection.redis, tiny.store.keys.audit(POOL)
        if not await redis.exists(key):
            await redis.xadd(key, {"lines": f"{line(4, status='failed', error='ValueError: no')}\n{line(5)}"})
            await redis.xadd(key, {"lines": line(6, tenant="acme")})
        return await cli("audit", *words, "--data-dir", str(tmp_path))

    return call


async def test_the_audit_is_read_from_files_and_redis(audit: Cli) -> None:
    async def found(*words: str) -> list[int]:
        ran = await audit(*words, "--json")
        assert (ran.status, ran.err) == (0, "")
        return [json.loads(text)["at"] // 1000 for text in ran.out.splitlines()]

    assert await found() == await found(POOL) == [1, 2, 3, 4, 5, 6]
    assert await found("--limit", "2") == [5, 6]
    assert await found("--limit", "4") == [3, 4, 5, 6]
    assert await found("--tenant", "acme") == [2, 6]
    assert await found("--tenant", "acme", "--type", "Echo") == [2]
    assert await found("--status", "failed") == [4]
    assert await found("--task", f"{POOL}/t3") == [3]
    assert await found("--since", "3e9") == [1, 2, 3, 4, 5, 6]
    assert await found("--since", "60") == []
    text = (await audit()).out
    assert "ValueError: no" in text
    assert text.count("\n") == 7


async def test_executions_are_audited(cli: Cli, tiny: TinyPool, tmp_path: Path) -> None:
    await tiny.add_worker("w1", handler=fail)
    task_id = await submitted(cli, "--input", "1", "--wait")
    ran = await cli("audit", "--since", "60", "--json", "--data-dir", str(tmp_path))
    row = json.loads(ran.out)
    assert (row["task_id"], row["status"], row["process_id"]) == (task_id, "succeeded", "w1")
    assert f"no audit files of the pool's leader, {MASTER}, in {tmp_path}" in ran.err
    assert ran.err.startswith("agentpool: note: ")


async def test_audit_files_of_another_user(cli: Cli, tiny: TinyPool, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / POOL).write_text("no folder")
    ran = await cli("audit", "--data-dir", str(tmp_path))
    assert (ran.status, ran.out) == (0, "No executions.\n")
    assert "cannot be read: Not a directory" in ran.err


# -- what is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit", "nope", "Echo", "--input", "1"), "No pool"),
        (("submit", POOL, "Ech", "--input", "1"), 'Did you mean "Echo"'),
        (("submit", POOL, "Echo", "--input", "text"), "A string needs quotes"),
        (("submit", POOL, "Echo", "--input", "1", "--priority", "10"), "priority is 10"),
        (("submit", POOL, "Echo", "--input", "1", "--delay", "-1"), "delay is -1"),
        (("submit", POOL, "Echo", "--input", "1", "--key", ""), "key is ''"),
        (("submit", POOL, "Echo", "--input", "1", "--requires", "a b"), "no valid label"),
        (("tasks", "show", "nothing"), "ids are <pool>/<id>"),
        (("tasks", "show", f"{POOL}/nothing"), "No task"),
        (("tasks", "follow", f"{POOL}/nothing"), "No task"),
        (("tasks", "cancel", f"{POOL}/nothing"), "No task"),
        (("dead", "list", "nope"), "No pool"),
        (("dead", "show", "nothing"), "ids are <pool>/<id>"),
        (("dead", "replay", f"{POOL}/nothing"), "no dead letter"),
        (("dead", "purge", "nothing"), "ids are <pool>/<id>"),
        (("dead", "purge", "--all", "--pool", "nope"), "No pool"),
        (("tenants", "nope"), "No pool"),
        (("tenants", "set", "nope", "t", "running=1"), "No pool"),
        (("tenants", "set", POOL, "a b", "running=1"), "no valid tenant name"),
        (("tenants", "set", POOL, "t", "runing=1"), 'Did you mean "running"'),
        (("tenants", "set", POOL, "t", "name=1"), 'No limit is named "name"'),
        (("tenants", "set", POOL, "t", "running=many"), "the value of a limit is a number"),
        (("tenants", "set", POOL, "t", "running=1.5"), "running is 1.5"),
        (("tenants", "set", POOL, "t", "weight=nan"), "weight is nan"),
        (("audit", "nope"), "No pool"),
    ],
)
async def test_bad_input_gives_one_line(cli: Cli, tiny: TinyPool, words: tuple[str, ...], said: str) -> None:
    assert said in refused(await cli(*words))
    ran = await cli(*words, "--json")
    assert (ran.status, ran.out) == (1, "")
    assert set(json.loads(ran.err)["error"]) == {"code", "message"}
    assert await tiny.store.connection.redis.exists(tiny.store.keys.limits(POOL)) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("submit", POOL, "Echo"),
        ("submit", POOL, "--input", "1"),
        ("submit", POOL, "Echo", "--input", "1", "--retry-attempts", "0"),
        ("submit", POOL, "Echo", "--input", "1", "--when-limited", "wait"),
        ("tasks", "show"),
        ("tasks", "cancel"),
        ("tasks", "nonsense"),
        ("dead", "replay"),
        ("dead", "replay", "--all"),
        ("dead", "purge", "x/y", "--all", "--pool", POOL),
        ("dead", "purge", "x/y", "--tenant", "acme"),
        ("dead", "list", "--limit", "0"),
        ("tenants", "set", POOL, "t"),
        ("tenants", "set", POOL, "t", "running"),
        ("tenants", "set", POOL, "t", "=3"),
        ("tenants", POOL, "more"),
        ("tenants", "--nonsense"),
        ("audit", "--status", "odd"),
        ("audit", "--since", "-1"),
    ],
)
async def test_wrong_usage_exits_with_2(words: tuple[str, ...]) -> None:
    for more in ((), ("--json",)):
        ran = await asyncio.to_thread(run_main, (*words, *more), b"")
        assert (ran.status, ran.out) == (2, "")
    assert json.loads(ran.err)["error"]["code"] == "USAGE"
