"""The zygote: it prepares or says why not, forks or execs, and tells how its children end."""

import os
import select
import signal
from pathlib import Path

import msgspec
import pytest
from support.worker_harness import Master

from agentpool.protocol.zygote import Exit, Failed, Fork, Ready


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


async def test_a_worker_is_forked_registered_and_held_by_its_pidfd(master: Master) -> None:
    ready = await master.prepare("Adder", "Shared")
    assert [(info.name, info.module, info.scope) for info in ready.types] == [
        ("Adder", "sample_agents", "tenant"),
        ("Shared", "sample_agents", "shared"),
    ]
    assert ready.warning == ""
    forked = await master.fork()
    assert await master.field("w1", "pid") == str(forked.pid)
    assert await master.field("w1", "start_time") == str(forked.start_time) != "0"
    assert await master.field("w1", "master") == "m1"
    assert await master.field("w1", "capacity") == "4"
    assert title(forked.pid) == "agentpool-worker p w1 @test1234"
    assert title(master.zygote.process.pid) == "agentpool-zygote p @test1234"
    assert os.getsid(forked.pid) == forked.pid
    assert os.readlink(f"/proc/{forked.pid}/fd/0") == "/dev/null"
    master.kill("w1", signal.SIGKILL)
    assert await master.zygote.exit_of("w1") == -signal.SIGKILL
    assert select.select([master.zygote.pidfds["w1"]], [], [], 5)[0]


async def test_the_zygote_holds_neither_thread_nor_connection(master: Master) -> None:
    await master.store.connection.ask("PING")
    before = len(await master.store.connection.redis.client_list())
    await master.prepare("Adder")
    assert len(os.listdir(f"/proc/{master.zygote.process.pid}/task")) == 1
    after = len(await master.store.connection.redis.client_list())
    assert after <= before


@pytest.mark.parametrize(
    ("specs", "words", "has_traceback"),
    [
        (["broken_module:Any"], "libfrobnicate.so.3 is missing", True),
        (["no_such_module:Any"], "No module named 'no_such_module'", True),
        (["sample_agents:Missing"], "module sample_agents has no Missing", False),
        (["sample_agents"], "write module:Class", False),
        (["sample_agents:Sum"], "is no subclass of agentpool.Agent", False),
        (["sample_agents:Adder", "sample_agents:Adder"], "two classes of this pool are named Adder", False),
    ],
)
async def test_what_cannot_be_used_is_a_clear_error(
    master: Master, specs: list[str], words: str, has_traceback: bool
) -> None:
    failed = await master.zygote.prepare(master.settings, *specs)
    assert isinstance(failed, Failed)
    assert words in failed.message
    assert ("Traceback" in failed.traceback) is has_traceback
    assert master.zygote.process.wait(5) == 1


async def test_modules_that_leave_threads_behind_get_new_interpreters(master: Master) -> None:
    ready = await master.prepare("Threaded", module="threaded_module")
    assert "telemetry" in ready.warning
    assert "new interpreters" in ready.warning
    forked = await master.fork()
    assert title(forked.pid) == "agentpool-worker p w1 @test1234"
    assert master.settings.redis_url not in title(forked.pid)
    await master.spawn("a", "Threaded")
    outcome = await master.run([1, 2], agent="a")
    assert bytes(outcome.result) == b"[1,2]"
    master.kill("w1", signal.SIGTERM)
    assert await master.zygote.exit_of("w1") == Exit.CLEAN


async def test_workers_outlive_their_zygote(master: Master) -> None:
    await master.prepare("Adder")
    await master.fork()
    await master.spawn("a", "Adder")
    master.zygote.control.close()
    assert master.zygote.process.wait(5) == 0
    assert (await master.run({"a": 1, "b": 2}, agent="a")).status == "succeeded"


async def test_ctrl_c_does_not_reach_it_and_sigterm_ends_it(master: Master) -> None:
    await master.prepare("Adder")
    master.zygote.process.send_signal(signal.SIGINT)
    await master.fork()
    master.kill("w1", signal.SIGINT)
    await master.spawn("a", "Adder")
    master.zygote.process.terminate()
    assert master.zygote.process.wait(5) == 0


async def test_end_of_file_before_anything_else_is_a_quiet_end(master: Master) -> None:
    master.zygote.control.close()
    assert master.zygote.process.wait(5) == 0


async def test_a_worker_without_an_order_takes_no_part(master: Master) -> None:
    await master.prepare("Adder")
    master.zygote.send(Fork(worker_id="w9", secret="guessed", master="m1"))
    assert await master.zygote.exit_of("w9") == Exit.NOT_REGISTERED
    order = await master.order("w1")
    master.zygote.send(Fork(worker_id="w1", secret="wrong", master="m1"))
    assert await master.zygote.exit_of("w1") == Exit.NOT_REGISTERED
    assert await master.field("w1", "status") == "ordered"
    assert order.secret not in master.log()


async def test_a_worker_that_cannot_reach_redis_gives_up_in_time(master: Master) -> None:
    await master.prepare("Adder")
    settings = msgspec.structs.replace(master.settings, redis_url="unix:///nowhere/redis.sock", start_timeout=0.3)
    master.zygote.send(Fork(worker_id="w1", secret="s", master="m1", worker=settings))
    assert await master.zygote.exit_of("w1") == Exit.NOT_REGISTERED
    assert "does not answer" in master.log()


async def test_it_needs_no_server_to_prepare(master: Master) -> None:
    settings = msgspec.structs.replace(master.settings, redis_url="redis://nowhere.invalid:6379/0")
    assert isinstance(await master.zygote.prepare(settings, "sample_agents:Adder"), Ready)


async def test_children_of_agent_modules_are_not_reported(master: Master) -> None:
    """A module may have started a program; its end is nobody's worker."""
    await master.prepare("Starter", module="starter_module")
    await master.fork()
    assert list(master.zygote.forked) == ["w1"]
    assert master.zygote.exited == {}
