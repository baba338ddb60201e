"""The data directory: what is in it that concerns the server, who may use it, and the lock on it."""

import fcntl
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from agentpool.errors import ServerError

__all__ = ["Folder", "Lock", "user_name", "write_private"]


@dataclass(frozen=True)
class Folder:
    """Names of everything in a data directory that concerns the server."""

    path: Path

    @classmethod
    def at(cls, data_dir: Path | str) -> "Folder":
        """The folder by its absolute path; links are kept."""
        return cls(Path(os.path.abspath(data_dir)))

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

    def log_bytes(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, offset: int) -> str:
        """What was logged after the first `offset` bytes."""
        try:
            with self.log.open("rb") as log:
                log.seek(offset)
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def has_data(self) -> bool:
        return self.data.is_dir() and any(self.data.iterdir())

    def has_lost_its_manifest(self) -> bool:
        """Whether there is data without the list of its files: a server would start empty and overwrite it."""
        if not self.has_data() or any(self.data.glob("*.manifest")):
            return False
        # A first start that was killed leaves empty files, or the first base file, which holds nothing yet.
        data = (file for file in self.data.glob("appendonly.aof.*") if not file.name.endswith(".1.base.rdb"))
        return any(file.stat().st_size for file in data)

    def prepare(self) -> None:
        """Make the folder, and close it to others; refuse one that is not ours alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = self.path.stat()
        if info.st_uid != os.geteuid():
            owner = user_name(info.st_uid)
            raise ServerError(
                f"{self.path} belongs to user {owner}, but this runs as {user_name(os.geteuid())}. Run it as {owner}, "
                "or set another data_dir."
            )
        if info.st_mode & stat.S_ISVTX:
            # /tmp and its like: closing it to others would break the machine.
            raise ServerError(f"{self.path} is a folder shared by all users. Set data_dir to one below it.")
        if info.st_mode & 0o077:
            self.path.chmod(0o700)


class Lock:
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


def write_private(path: Path, content: bytes) -> None:
    """Put a file in place whole, readable by its owner alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    draft.rename(path)


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
