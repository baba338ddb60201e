"""`server.json`: what a data directory remembers of the server that runs on it, or that ran last."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from agentpool.errors import ServerError
from agentpool.redis_server.binaries import Binary, Kind, Product, version_from
from agentpool.redis_server.folder import Folder, write_private
from agentpool.redis_server.processes import Process
from agentpool.redis_server.sockets import socket_path_for

__all__ = ["Record", "read_record", "recorded_place", "restore_record", "write_record"]


@dataclass(frozen=True)
class Record:
    """Which server wrote the data, which process it is or was, where, and where it listens."""

    kind: Kind
    version: str
    data_dir: str
    pid: int
    start_time: int
    boot_id: str
    pid_ns: int
    socket: str

    @property
    def process(self) -> Process:
        return Process(self.pid, self.start_time, self.boot_id, self.pid_ns)

    @property
    def writer(self) -> Product:
        return Product(self.kind, version_from(self.version))

    @classmethod
    def of(cls, binary: Binary, process: Process, folder: Folder, socket_path: Path) -> "Record":
        version, data_dir = ".".join(map(str, binary.version)), str(folder.path.resolve())
        return cls(binary.kind, version, data_dir, **asdict(process), socket=str(socket_path))

    def is_of(self, folder: Folder) -> bool:
        """False in a copy of a data directory, whose process and socket are those of the original."""
        return self.data_dir == str(folder.path.resolve())


def read_record(folder: Folder) -> Record | None:
    """The record of a folder, None if it has none. Raises ServerError when it cannot be read."""
    try:
        return Record(**json.loads(folder.record.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        # Ignoring it would also ignore what it protects: data that another product wrote.
        raise ServerError(
            f"{folder.record} cannot be read ({error}). If no server runs on this folder, move it away and start "
            f"again: mv {shlex.quote(str(folder.record))} {shlex.quote(str(folder.record))}.damaged"
        ) from error


def write_record(folder: Folder, record: Record) -> None:
    write_private(folder.record, json.dumps(asdict(record), indent=2).encode() + b"\n")


def restore_record(folder: Folder, before: Record | None) -> None:
    """A server that never ran wrote no data; say again who did, or an upgrade that fails could not be undone."""
    if before:
        write_record(folder, before)
    else:
        folder.record.unlink(missing_ok=True)


def recorded_place(folder: Folder) -> tuple[Process | None, Path]:
    """The process that ran here last, living or not, and the socket on which to ask."""
    record = read_record(folder)
    if record is None or not record.is_of(folder):
        return None, socket_path_for(folder.path)
    # The record first: the environment of its starter may have led it to another runtime folder than ours.
    return record.process, Path(record.socket)
