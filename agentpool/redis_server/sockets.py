"""Where the server of a data directory listens, and who listens there."""

import hashlib
import os
import socket
import stat
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from agentpool.errors import ServerError
from agentpool.redis_server.folder import Folder, user_name

__all__ = ["check_private", "peer_pid", "prepare_socket_folder", "socket_path_for", "socket_url"]

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` has 108 bytes, one of them for the final NUL."""


def socket_path_for(data_dir: Path | str) -> Path:
    """Where the server of a data directory listens; nothing is created.

    `<data_dir>/redis.sock`, or, where that is too long for a socket, a file in a private folder below
    `$XDG_RUNTIME_DIR`, the folder for temporary files, or `/tmp`.
    """
    folder = Folder.at(data_dir).path
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


def prepare_socket_folder(path: Path, folder: Folder) -> None:
    """Make the private folder of a socket that is not in the data directory, and take away a stale socket."""
    if path.parent != folder.path:
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        check_private(path.parent)
    path.unlink(missing_ok=True)


def check_private(folder: Path) -> None:
    """Refuse a socket folder that someone else could have put there, to be asked in the server's stead."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ServerError(
            f"{folder} must be a folder of user {user_name(os.geteuid())} with mode 0700, but it is not. Remove it if "
            "you know where it comes from, or set XDG_RUNTIME_DIR to a private folder."
        )


def peer_pid(path: Path, timeout: float) -> int:
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


def socket_url(path: Path, password: str | None) -> str:
    """For redis-py's `from_url`."""
    login = f":{quote(password, safe='')}@" if password else ""
    return f"unix://{login}{quote(str(path))}"
