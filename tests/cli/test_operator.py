"""The commands of `agentpool`: their documents, their exit statuses, and one clear line for whatever is wrong."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROGRAM, Cli, refused, run_main, start
from support.tiny_pool import POOL, TinyPool, tiny_pool
from support.wait import wait_until

from agentpool.cli import output
from agentpool.errors import AgentPoolError

# -- looking ----------------------------------------------------------------------------------------------------


async def test_stats_as_the_contract_defines_them(cli: Cli, tiny: TinyPool) -> None:
    for _ in range(2):
        await tiny.add_worker()
    spawned = (await cli("spawn", POOL, "--type", "Echo", "--count", "15", "--json")).document
    assert len(spawned) == 15
    assert set(spawned[0]) == {"agent_id", "process_id", "pool_name", "status"}
    assert {row["status"] for row in spawned} == {"idle"}
    stats = (await cli("stats", POOL, "--json")).document
    names = ("process_count", "active_worker_processes", "total_capacity", "available_capacity", "agent_count")
    assert [stats[name] for name in names] == [2, 2, 20, 5, 15]
    assert (stats["used_capacity"], stats["utilization"], stats["pool_name"]) == (15, 0.75, POOL)
    assert (await cli("--json", "stats")).document == [stats]
    workers = (await cli("workers", POOL, "--json")).document
    assert {"process_id", "pid", "host", "pool_name", "status", "capacity", "agent_count"} <= set(workers[0])
    assert (await cli("workers", "--json")).document == workers
    assert [pool["pool_name"] for pool in (await cli("pools", "--json")).document] == [POOL]


async def test_agents_and_filters(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker()
    await cli("spawn", POOL, "--type", "Echo", "--id", "a", "--tenant", "acme", "--project", "x")
    await cli("spawn", POOL, "--type", "Echo", "--id", "b", "--max-idle-time", "60", "--heartbeat-interval", "1")

    async def ids(*words: str) -> list[str]:
        return [agent["agent_id"] for agent in (await cli("agents", *words, "--json")).document]

    assert await ids() == await ids(POOL) == [f"{POOL}/a", f"{POOL}/b"]
    assert await ids(POOL, "--tenant", "acme") == await ids("--project", "x") == [f"{POOL}/a"]
    assert await ids("--status", "pending") == []
    assert (await cli("agents", "--status", "odd")).status == 2


async def test_text_in_a_pipe_is_aligned(cli: Cli, tiny: TinyPool) -> None:
    assert (await cli("workers")).out == "No workers.\n"
    assert (await cli("agents", POOL)).out == "No agents.\n"
    await tiny.add_worker("w1")
    await cli("spawn", POOL, "--type", "Echo", "--id", "a")
    for words in (("pools",), ("stats",), ("workers",), ("agents", POOL), ("events", "--limit", "3")):
        lines = (await cli(*words)).out.splitlines()
        column = lines[0].index(lines[0].split()[1])
        assert all(line[column - 1] == " " for line in lines)
    sheet = (await cli("stats", POOL)).out
    assert "1 of 10 used, 9 free (10%)" in sheet
    assert "leader" in sheet


async def test_events(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker("w1")
    rows = (await cli("events", POOL, "--json")).document
    assert [row["type"] for row in rows][-2:] == ["worker.ordered", "worker.ready"]
    assert rows[-1]["process_id"] == "w1"
    assert len((await cli("events", "--json", "--limit", "1")).document) == 1


async def test_doctor(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker("w1", works=False)
    assert (await cli("doctor", "--json")).document == {"violations": []}
    assert (await cli("doctor")).out == "All invariants hold.\n"
    await tiny.store.connection.redis.zadd(tiny.store.keys.processes(POOL), {"w1": 3})
    ran = await cli("doctor", "--json")
    assert ran.status == 1
    assert [fault["invariant"] for fault in json.loads(ran.out)["violations"]] == [1]
    ran = await cli("doctor")
    assert ran.status == 1
    assert "has 10 free slots, but the index says 3" in ran.out
    done = (await cli("doctor", "--repair", "--json")).document
    assert [row["subject"] for row in done["mended"]] == ["w1"]
    assert (done["violations"], done["left"]) == ([], [])
    ran = await cli("doctor", "--repair", "--settle", "0.1")
    assert (ran.status, ran.out) == (0, "All invariants hold.\n")


async def test_doctor_says_what_it_cannot_mend(cli: Cli, tiny: TinyPool) -> None:
    redis, keys = tiny.store.connection.redis, tiny.store.keys
    await tiny.add_worker("w1", works=False)
    await redis.set(keys.task(f"{POOL}/odd"), "what is this")
    await redis.zadd(keys.processes(POOL), {"w1": 3})
    ran = await cli("doctor", "--repair", "--settle", "0.1")
    assert ran.status == 1
    assert "free slots and indexes written anew" in " ".join(ran.out.split())
    assert "redis-cli GET" in ran.out
    assert "All invariants hold" not in ran.out


# -- asking -----------------------------------------------------------------------------------------------------


async def test_run(cli: Cli, tiny: TinyPool, tmp_path: Path) -> None:
    await tiny.add_worker()
    await cli("spawn", POOL, "--type", "Echo", "--id", "a")
    file = tmp_path / "input.json"
    file.write_bytes(b'\xef\xbb\xbf{"from": "a file"}')
    by_type = ("run", POOL, "--type", "Echo", "--json", "--input")
    assert (await cli(*by_type, '{"a": [1, "ü"]}')).document == {"a": [1, "ü"]}
    assert (await cli(*by_type, f"@{file}")).document == {"from": "a file"}
    assert (await cli(*by_type, "-", stdin=b"[1]")).document == [1]
    assert (await cli("run", POOL, "--agent", "a", "--input", "1", "--json")).document == 1
    assert (await cli("run", POOL, "--agent", f"{POOL}/a", "--input", '"text"', "--timeout", "5")).out == "text\n"
    assert (await cli("run", POOL, "--type", "Echo", "--tenant", "acme", "--input", "[1]")).out == "[1]\n"


async def test_terminate(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker()
    for name in "abc":
        await cli("spawn", POOL, "--type", "Echo", "--id", name)
    ended = (await cli("terminate", f"{POOL}/a", f"{POOL}/b", "--json")).document
    assert ended == [{"agent_id": f"{POOL}/{name}", "status": "terminated"} for name in "ab"]
    assert (await cli("terminate", f"{POOL}/a")).status == 0, "it may be repeated"
    assert "1 of 2 agents ended" in refused(await cli("terminate", f"{POOL}/c", f"{POOL}/nobody"))
    assert "<pool>/<name>" in refused(await cli("terminate", "nobody"))
    assert await tiny.store.agents.names(POOL) == []


async def test_drain_and_scale(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker("w1", works=False)
    assert (await cli("drain", "w1", "--json")).document == {"process_id": "w1", "status": "draining"}
    assert "w1 drains" in (await cli("drain", "w1")).out
    assert (await cli("scale", POOL, "--workers", "2", "--json")).document == {"pool_name": POOL, "workers": 2}
    assert "keeps 3" in (await cli("scale", POOL, "--workers", "3")).out


async def test_raw_commands(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker("w1")
    ready = (await cli("redis", "ZREVRANGE", f"pool:{POOL}:processes", "0", "-1", "WITHSCORES")).out
    assert ready == '1) "w1"\n2) "10"\n'
    assert (await cli("redis", "ZREVRANGE", f"pool:{POOL}:processes", "0", "-1", "--json")).document == ["w1"]
    assert (await cli("redis", "--json", "HGET", f"pool:{POOL}", "nothing")).document is None
    assert (await cli("redis", "EXISTS", "x")).out == "(integer) 0\n"
    assert (await cli("redis", "GET", "x")).out == "(nil)\n"
    assert (await cli("redis", "SET", "x", 'a"b\n')).out == "OK\n"
    assert (await cli("redis", "GET", "x")).out == '"a\\"b\\n"\n'
    assert (await cli("redis", "KEYS", "none*")).out == "(empty array)\n"
    assert (await cli("redis", "--json", "EVAL", "return {1, {'a', {}}}", "0")).document == [1, ["a", []]]
    assert "unknown command" in refused(await cli("redis", "NONSENSE"))
    assert "WRONGTYPE" in refused(await cli("redis", "HGETALL", "x"))


async def test_words_of_redis_may_begin_with_a_dash(cli: Cli, redis_url: str) -> None:
    assert (await cli("redis", "ACL", "SETUSER", "lim", "on", "-publish", "-h")).status == 1, "-h is no rule"
    assert (await cli("redis", "ACL", "SETUSER", "lim", "on", "+@all", "-publish")).out == "OK\n"
    try:
        assert "-publish" in (await cli("redis", "ACL", "GETUSER", "lim")).out
    finally:
        assert (await cli("redis", "ACL", "DELUSER", "lim")).out == "(integer) 1\n"
    assert (await cli("redis", "ECHO", "--help")).out == '"--help"\n'
    assert (await cli("redis", "-h")).status == 2
    assert "COMMAND" in (await cli("redis", "--help")).out


async def test_options_stand_before_a_raw_command_or_at_its_end(cli: Cli, redis_url: str) -> None:
    assert (await cli("redis", "--data-dir", "x", "ECHO", "a", "--json", "--data-dir=y")).document == "a"
    assert (await cli("redis", "--json", "ECHO", "a", "--data-dir", "--json")).document == "a"
    assert "wrong number of arguments" in (await cli("redis", "ECHO", "--json", "a")).err
    first = ("--redis-url", redis_url, "redis")
    for words in (("--", "ECHO", "--json"), ("--data-dir", "x", "--", "ECHO", "--json")):
        ran = await asyncio.to_thread(run_main, (*first, *words), b"")
        assert (ran.status, ran.out) == ((0, '"--json"\n')), words
    assert (await cli("redis", "--json")).status == 2, "no word of Redis"


def test_replies_are_shown_as_redis_cli_does() -> None:
    assert output.redis_text([b"a", [1, [None, b"OK"]], []]) == (
        '1) "a"\n2) 1) (integer) 1\n   2) 1) (nil)\n      2) OK\n3) (empty array)'
    )
    ten = output.redis_text(list(range(10))).splitlines()
    assert (ten[0], ten[9]) == (" 1) (integer) 0", "10) (integer) 9")
    assert output.redis_text(b"\xff") == '"\\\\xff"'


# -- what is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("spawn", "nope", "--type", "Echo"), 'No pool named "nope"'),
        (("stats", "developer_poo"), 'Did you mean "developer_pool"'),
        (("workers", "a b"), "no valid pool name"),
        (("agents", "nope"), "No pool"),
        (("events", "nope"), "No pool"),
        (("events", "nope", "--follow"), "No pool"),
        (("scale", "nope", "--workers", "1"), "No pool"),
        (("spawn", POOL, "--type", "Ech"), 'Did you mean "Echo"'),
        (("spawn", POOL, "--type", "Echo", "--id", "taken"), "agentpool terminate"),
        (("spawn", POOL, "--type", "Echo", "--id", "other/x"), "another pool"),
        (("spawn", POOL, "--type", "Echo", "--count", "-3"), "--count is -3"),
        (("spawn", POOL, "--type", "Echo", "--count", "0"), "--count is 0"),
        (("spawn", POOL, "--type", "Echo", "--id", "x", "--count", "2"), "--id names one agent"),
        (("spawn", POOL, "--type", "Echo", "--max-idle-time", "-1"), "max_idle_time"),
        (("spawn", POOL, "--type", "Echo", "--tenant", "a b"), "no valid tenant name"),
        (("scale", POOL, "--workers", "-1"), "0 to 3 workers"),
        (("scale", POOL, "--workers", "4"), "0 to 3 workers"),
        (("drain", "nobody"), 'No worker named "nobody"'),
        (("terminate", f"{POOL}/nobody"), "No live agent"),
        (("run", "nope", "--type", "Echo", "--input", "1"), "No pool"),
        (("run", POOL, "--type", "Ech", "--input", "1"), "No agent type"),
        (("run", POOL, "--agent", "nobody", "--input", "1"), "No live agent"),
        (("run", POOL, "--type", "Echo", "--input", "{\n  bad"), "line 2, column 3"),
        (("run", POOL, "--type", "Echo", "--input", "text"), "A string needs quotes"),
        (("run", POOL, "--type", "Echo", "--input", "NaN"), "NaN is not valid JSON"),
        (("run", POOL, "--type", "Echo", "--input", "[" * 20_000), "nested too deeply"),
        (("run", POOL, "--type", "Echo", "--input", "@/does/not/exist"), "No such file"),
        (("run", POOL, "--type", "Echo", "--input", "1", "--timeout", "-1"), "timeout is -1"),
        (("run", POOL, "--type", "Echo", "--input", json.dumps("x" * 200_000)), "max_input_bytes"),
        (("stats", "--config", "/does/not/exist.toml"), "exist.toml"),
    ],
)
async def test_bad_input_gives_one_line_and_changes_nothing(
    cli: Cli, tiny: TinyPool, words: tuple[str, ...], said: str
) -> None:
    await tiny.add_worker()
    await cli("spawn", POOL, "--type", "Echo", "--id", "taken")
    before = await registry(tiny)
    assert said in refused(await cli(*words))
    ran = await cli(*words, "--json")
    assert (ran.status, ran.out) == (1, "")
    error = json.loads(ran.err)["error"]
    assert set(error) == {"code", "message"}
    assert await registry(tiny) == before


async def registry(tiny: TinyPool) -> dict[str, object]:
    redis = tiny.store.connection.redis
    keys = [key for key in await redis.keys("*") if "events" not in key]
    agents = {key: await redis.hgetall(key) for key in keys if key.startswith("agent:")}
    return {"keys": sorted(keys), "agents": agents, "pool": await redis.hget(tiny.store.keys.pool(POOL), "desired")}


async def test_input_that_is_no_text(cli: Cli, tiny: TinyPool) -> None:
    assert "byte 1 is 0xff" in refused(await cli("run", POOL, "--type", "Echo", "--input", "-", stdin=b'"\xff"'))


async def test_a_wrong_field_is_named(cli: Cli, tiny: TinyPool) -> None:
    from agentpool import InvalidInput

    async def refuse(_: object) -> None:
        raise InvalidInput("Reviewer: Expected `str`, got `int` at $.path", "$.path")

    await tiny.add_worker(handler=refuse)
    assert "at $.path" in refused(await cli("run", POOL, "--type", "Echo", "--input", '{"path": 1}'))


async def test_what_an_agent_raises_is_one_line(cli: Cli, tiny: TinyPool) -> None:
    async def fail(_: object) -> None:
        raise ValueError("first\nsecond")

    await tiny.add_worker(handler=fail)
    assert "ValueError: first second" in refused(await cli("run", POOL, "--type", "Echo", "--input", "1"))


async def test_some_of_many_find_no_room(cli: Cli, tiny: TinyPool) -> None:
    await tiny.add_worker(capacity=2)
    ran = await cli("spawn", POOL, "--type", "Echo", "--count", "3", "--timeout", "0.5", "--json")
    assert ran.status == 1
    assert len(json.loads(ran.out)) == 2
    error = json.loads(ran.err)["error"]
    assert error["code"] == "NO_CAPACITY"
    assert error["message"].startswith("2 of 3 agents run.")
    assert len(await tiny.store.agents.names(POOL)) == 2


async def test_redis_is_down(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentpool.store import Connection

    defaults = {**(Connection.__init__.__kwdefaults__ or {}), "command_timeout": 0.2}
    monkeypatch.setattr(Connection.__init__, "__kwdefaults__", defaults)
    assert "does not answer" in refused(await cli("stats", url="redis://127.0.0.1:1"))
    assert "redis://" in refused(await cli("stats", url="nonsense"))


async def test_a_wrong_password(cli: Cli, tiny: TinyPool, redis_url: str) -> None:
    await tiny.store.connection.redis.execute_command("ACL", "SETUSER", "guest", "on", ">right", "~*", "+@all")
    try:
        said = refused(await cli("stats", url=redis_url.replace("unix://", "unix://guest:secret@")))
        assert "refused the login" in said
        assert "secret" not in said
    finally:
        await tiny.store.connection.redis.execute_command("ACL", "DELUSER", "guest")


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("spawn", POOL),
        ("run", POOL, "--input", "1"),
        ("run", POOL, "--type", "Echo"),
        ("run", POOL, "--type", "Echo", "--agent", "a", "--input", "1"),
        ("run", POOL, "--agent", "a", "--tenant", "t", "--input", "1"),
        ("scale", POOL, "--workers", "many"),
        ("spawn", POOL, "--type", "Echo", "--count", "x"),
        ("events", "--limit", "0"),
        ("terminate",),
    ],
)
async def test_wrong_usage_exits_with_2(cli: Cli, words: tuple[str, ...]) -> None:
    ran = await cli(*words)
    assert (ran.status, ran.out) == (2, "")
    ran = await cli(*words, "--json")
    assert (ran.status, ran.out) == (2, "")
    assert json.loads(ran.err)["error"]["code"] == "USAGE"


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("spawn", "--help"), ("--version",)])
async def test_help(cli: Cli, words: tuple[str, ...]) -> None:
    ran = await cli(*words)
    assert ran.status == 0
    assert "agentpool" in ran.out


async def test_a_bug_is_one_line_that_says_where(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("agentpool.cli.views.pools", fail)
    said = refused(await cli("pools"))
    assert said.startswith("agentpool: internal error: ZeroDivisionError: first second (at ")
    assert "test_operator.py:" in said
    assert "bug worth reporting" in said
    ran = await cli("pools", "--json")
    assert (ran.status, ran.out) == (1, "")
    error = json.loads(ran.err)["error"]
    assert (error.keys(), error["code"]) == ({"code", "message"}, "INTERNAL")


def test_an_error_without_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error("agentpool", AgentPoolError("odd"), as_json=True)
    assert json.loads(capsys.readouterr().err) == {"error": {"code": "ERROR", "message": "odd"}}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")]
)
def test_ages(seconds: int, text: str) -> None:
    assert output.ages(seconds * 1000 + 1, 1) == text
    assert output.ages(5, 0) == "-"


# -- real processes ---------------------------------------------------------------------------------------------


async def test_events_can_be_followed_until_interrupted(redis_url: str, tiny: TinyPool) -> None:
    process = start(redis_url, "events", POOL, "--follow", "--json")
    try:
        reading = asyncio.ensure_future(asyncio.to_thread(process.stdout.readline))  # type: ignore[union-attr]
        while not reading.done():  # it follows from the moment it has connected, which nothing tells
            await tiny.store.pools.scale(POOL, 1)
            await asyncio.wait([reading], timeout=0.3)
        assert json.loads(await reading)["type"] == "pool.scaled"
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert (process.returncode, err) == (130, ""), err
    finally:
        process.kill()
        process.communicate()


async def test_ctrl_c_cancels_what_it_waits_for(redis_url: str, tiny: TinyPool) -> None:
    left = asyncio.Event()

    async def wait(_: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            left.set()

    worker = await tiny.add_worker(handler=wait)
    process = start(redis_url, "run", POOL, "--type", "Echo", "--input", "1")
    try:
        await wait_until(lambda: worker._runs)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.to_thread(process.communicate, timeout=10)
        assert (process.returncode, err) == (130, ""), err
        await asyncio.wait_for(left.wait(), 5)
    finally:
        process.kill()
        process.communicate()


async def test_subscriptions_print_what_comes(redis_url: str, tiny: TinyPool) -> None:
    process = start(redis_url, "redis", "SUBSCRIBE", f"pool:{POOL}:commands")
    try:
        lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(3)]  # type: ignore[union-attr]
        assert lines[0] == '1) "subscribe"\n'
        await tiny.add_worker("w1", works=False)
        await tiny.store.workers.drain(POOL, "w1", reason="test")
        message = [await asyncio.to_thread(process.stdout.readline) for _ in range(3)]  # type: ignore[union-attr]
        assert '{\\"' in message[2]
        assert "drain" in message[2]
    finally:
        process.kill()
        process.communicate()


async def test_a_terminal_gets_tables(redis_url: str, tiny: TinyPool) -> None:
    await tiny.add_worker("w1")
    mine, theirs = pty.openpty()
    try:
        for words in (("workers",), ("stats", POOL), ("run", POOL, "--type", "Echo", "--input", "[1]")):
            command = [*PROGRAM, *words, "--redis-url", redis_url]
            done = await asyncio.create_subprocess_exec(*command, stdout=theirs, env={**os.environ, "COLUMNS": "200"})
            assert await asyncio.wait_for(done.wait(), 20) == 0
        shown = os.read(mine, 65536).decode()
    finally:
        os.close(mine)
        os.close(theirs)
    assert "w1" in shown
    assert "│" in shown
    assert "\x1b[1mPool" in shown
    assert "[\r\n  1\r\n]" in shown


async def test_it_looks_into_redis_whatever_programs_are_told(
    redis_server: object, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local pools live inside one program, where no command sees them."""
    config = tmp_path / "agentpool.toml"
    config.write_text(f'[redis]\nurl = "{redis_url}"\n')
    monkeypatch.setenv("USE_MULTIPROCESSING", "false")
    monkeypatch.setenv("REDIS_URL", redis_url)
    async with tiny_pool(redis_url):
        for words in ((), ("--redis-url", redis_url), ("--data-dir", str(redis_server.data_dir))):  # type: ignore[attr-defined]
            ran = await asyncio.to_thread(run_main, ("pools", "--json", *words), b"")
            assert [pool["pool_name"] for pool in ran.document] == [POOL]
        monkeypatch.delenv("REDIS_URL")
        ran = await asyncio.to_thread(run_main, ("pools", "--json", "--config", str(config)), b"")
        assert [pool["pool_name"] for pool in ran.document] == [POOL]


@pytest.mark.parametrize("url", ["local://", "local:", "local://here"])
async def test_local_pools_are_refused(cli: Cli, url: str) -> None:
    for words in (("stats",), ("doctor",), ("redis", "PING")):
        said = refused(await cli(*words, url=url))
        assert f"--redis-url {url}: local pools live inside the program that opened them" in said
        assert "looks into Redis" in said


async def test_the_embedded_server_is_found_in_the_data_directory(redis_server: object, redis_url: str) -> None:
    async with tiny_pool(redis_url):
        command = [*PROGRAM, "pools", "--json", "--data-dir", str(redis_server.data_dir)]  # type: ignore[attr-defined]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert [pool["pool_name"] for pool in json.loads(done.stdout)] == [POOL]


def test_starting_is_quick_enough_to_be_typed_often() -> None:
    loaded = "[m for m in ('redis', 'uvloop', 'agentpool.client') if m in sys.modules]"
    code = f"import agentpool.cli.operator, sys; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "what costs much is loaded when a command needs it"


@pytest.mark.parametrize("words", [("pools",), ("pools", "--json"), ("events", "--limit", "1"), ("doctor",)])
async def test_an_output_that_is_full_is_one_line(redis_url: str, tiny: TinyPool, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        command = [*PROGRAM, *words, "--redis-url", redis_url]
        done = await asyncio.to_thread(
            subprocess.run, command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Could not write the output: No space left on device." in done.stderr


@pytest.mark.parametrize("words", [("pools",), ("pools", "--json"), ("doctor",)])
async def test_a_closed_pipe_is_quiet(redis_url: str, tiny: TinyPool, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [*PROGRAM, *words, "--redis-url", redis_url]
        done = await asyncio.to_thread(
            subprocess.run, command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
