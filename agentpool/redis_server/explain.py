"""Errors that say what to do: what the operating system refused, why a server died, what its data needs."""

import errno
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentpool.errors import ServerError
from agentpool.redis_server.binaries import Binary
from agentpool.redis_server.folder import Folder, user_name

__all__ = ["explain_death", "explain_lost_manifest", "explaining", "log_tail", "set_aside", "truncation_in"]

LOG_LINES = 10

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


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
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
        }.get(error.errno or 0, f"Let user {user_name(os.geteuid())} write there, or set another data_dir.")
        raise ServerError(
            f"Cannot run a Redis server in {folder}: {error.strerror or error}{where}. {advice}"
        ) from error


def explain_death(log: str, folder: Folder, binary: Binary, port: int, status: int | None) -> str:
    """One line on why a server died while it started, and what to do; from its log."""
    if re.search(r"Address already in use", log):
        return f"Port {port} is taken. Set another port under [redis], or 0, which leaves TCP off."
    if re.search(r"No space left on device", log):
        return f"The disk of {folder.path} is full. Free space and start again."
    if _was_written_by_another(log, folder):
        return (
            f"The data in {folder.path} was written by another or a newer server than {binary}. Set binary under "
            f"[redis] to choose it, or set the data aside and start empty: {set_aside(folder, 'foreign')}"
        )
    if re.search(_DAMAGE, log):
        return f"{_damaged(folder)} - then {_repair(log, folder, binary)}"
    return f"The Redis server {binary.path} {_how(status)} while it started. Its last words are in {folder.log}."


def explain_lost_manifest(folder: Folder) -> str:
    """What to do about data without the list of its files."""
    return (
        f"{_damaged(folder)} - then put appendonly.aof.manifest, which is missing, back from a backup, or start "
        f"empty: {set_aside(folder, 'no-manifest')}"
    )


def truncation_in(log: str) -> bool:
    """Whether a server says that it cut off the end of its data."""
    return re.search(_TRUNCATED, log) is not None


def log_tail(log: str) -> str:
    """The last lines of a log, to be put below an error."""
    lines = [line for line in log.splitlines() if line.strip()][-LOG_LINES:]
    return "\nIts last lines of log:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def set_aside(folder: Folder, why: str) -> str:
    """The command that sets the data aside."""
    target = f"{folder.data}.{why}-{time.strftime('%Y-%m-%d')}"
    return f"mv {shlex.quote(str(folder.data))} {shlex.quote(target)}"


def _was_written_by_another(log: str, folder: Folder) -> bool:
    if re.search(_FOREIGN_VERSION, log):
        return True
    # Servers that do not know the first letters of the base file take it for a garbled list of commands.
    file = re.search(_FOREIGN_MAGIC, log)
    return file is not None and (folder.data / file[1]).read_bytes()[:6].startswith((b"REDIS", b"VALKEY"))


def _repair(log: str, folder: Folder, binary: Binary) -> str:
    """What an operator can do about damage. Only a file of commands can be cut where the damage begins."""
    file = re.search(_REPAIRABLE, log)
    if file is None:
        return f"restore a backup, or start empty: {set_aside(folder, 'unusable')}"
    # Both products turn into their repair tool by name; the bundled one comes without a link of that name. It is given
    # the file, not the manifest: valkey-check-aof 9.1 takes its own base files for damaged (valkey-io/valkey#4739).
    path = shlex.quote(str(folder.data / file[1]))
    command = f"exec -a {binary.kind}-check-aof {shlex.quote(str(binary.path))} --fix {path}"
    return f"cut off what follows the damage: bash -c {shlex.quote(command)}"


def _damaged(folder: Folder) -> str:
    backup = f"{folder.data}.damaged-{time.strftime('%Y-%m-%d')}"
    return (
        f"The data in {folder.data} is damaged and was left as it is. Back it up first: "
        f"cp -a {shlex.quote(str(folder.data))} {shlex.quote(backup)}"
    )


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
