"""What a server is told: `redis.conf`, and the password for TCP. Both are written at each start."""

import os
import secrets
from pathlib import Path

from agentpool.config import RedisSettings
from agentpool.redis_server.binaries import Version
from agentpool.redis_server.folder import Folder, write_private

__all__ = ["write_settings"]

SETS_AS_LISTS: Version = (7, 2)
"""The first version that keeps small sets of text as lists."""


def write_settings(folder: Folder, settings: RedisSettings, socket_path: Path, version: Version) -> None:
    _write_password(folder, settings)
    _write_config(folder, settings, socket_path, version)


def _write_password(folder: Folder, settings: RedisSettings) -> None:
    """A password for TCP, kept from one run to the next; without TCP none, also not an old one."""
    if not settings.port:
        folder.password.unlink(missing_ok=True)
        return
    password = folder.read_password() or secrets.token_urlsafe(32)
    write_private(folder.password, password.encode() + b"\n")


def _write_config(folder: Folder, settings: RedisSettings, socket_path: Path, version: Version) -> None:
    options: dict[str, str | Path] = {
        "dir": folder.path,
        "logfile": folder.log,
        "unixsocket": socket_path,
        "unixsocketperm": "700",
        "port": str(settings.port),
        "daemonize": "no",
        "appendonly": "yes",
        "appenddirname": folder.data.name,
        "appendfsync": settings.appendfsync,
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        # The tasks of a worker or a tenant, some dozens to a hundred, would be looked through for each new one.
        "zset-max-listpack-entries": "16",
        **({"set-max-listpack-entries": "16"} if version >= SETS_AS_LISTS else {}),
        "always-show-logo": "no",
    }
    lines = [f"{name} ".encode() + _quoted(value) for name, value in options.items()]
    if settings.port:
        # The dash: a machine without IPv6 is no error.
        lines.append(b"bind 127.0.0.1 -::1")
        lines.append(b"requirepass " + _quoted(folder.read_password() or ""))
    text = b"# Written by agentpool at each start of the server; changes are lost.\n" + b"\n".join(lines) + b"\n"
    write_private(folder.config, text)


def _quoted(value: str | Path) -> bytes:
    """A value for redis.conf; bytes, since a path need not be UTF-8."""
    raw = os.fsencode(value).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + raw + b'"'
