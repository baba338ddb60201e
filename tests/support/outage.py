"""A server of its own for tests that harm it: killed, frozen, brought back with or without its latest writes."""

import os
import shutil
import signal
from pathlib import Path
from typing import Literal

import redis

from agentpool.config import RedisSettings
from agentpool.redis_server import EmbeddedServer

__all__ = ["HarmedServer"]


class HarmedServer:
    """A real server whose append-only file can be put back to an earlier moment, as when a machine fails."""

    def __init__(self, folder: Path, appendfsync: Literal["always", "everysec", "no"] = "everysec") -> None:
        self.folder = folder
        self._server = EmbeddedServer(folder, RedisSettings(appendfsync=appendfsync))
        self._copy = folder.with_name(f"{folder.name}-copy")

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def pid(self) -> int:
        assert self._server.pid
        return self._server.pid

    def start(self) -> "HarmedServer":
        self._server.start()
        return self

    def stop(self) -> None:
        """End it properly: everything is on the disk."""
        self._server.stop()

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self.signal(signal.SIGKILL)
        self._server.stop()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def remember(self) -> None:
        """Keep a copy of what is on the disk now."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._data, self._copy)

    def lose(self) -> None:
        """Kill it, and take away what was written since `remember`."""
        self.kill()
        data = self._data
        shutil.rmtree(data)
        shutil.copytree(self._copy, data)

    def lose_everything(self) -> None:
        """Kill it, and take away all its data."""
        self.kill()
        shutil.rmtree(self._data)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    @property
    def _data(self) -> Path:
        return next(path for path in self.folder.iterdir() if path.is_dir() and any(path.glob("*.manifest")))
