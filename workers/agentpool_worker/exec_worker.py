"""Workers as new interpreters, for pools whose modules leave threads behind: forking would copy locks in any state.

The order is handed over in a memory file, not as arguments: the Redis URL may hold a password, and arguments are
readable by everyone.
"""

import os
import sys

import msgspec

from agentpool.protocol.zygote import Fork, Prepare, WorkerSettings

__all__ = ["Order", "exec_worker", "read_order"]


class Order(msgspec.Struct, frozen=True):
    """All that a new interpreter needs to become the worker."""

    agents: tuple[str, ...]
    app_dir: str
    settings: WorkerSettings
    fork: Fork


def exec_worker(prepared: Prepare, fork: Fork, settings: WorkerSettings) -> int:
    """Start `python -m agentpool_worker.worker` with this order; returns its pid."""
    order = Order(prepared.agents, prepared.app_dir, settings, fork)
    fd = os.memfd_create("agentpool-order", 0)
    try:
        os.write(fd, msgspec.json.encode(order))
        os.lseek(fd, 0, os.SEEK_SET)
        # posix_spawn runs no Python code in the child, so this process's other threads do not matter.
        arguments = [sys.executable, "-m", "agentpool_worker.worker", "--order-fd", str(fd)]
        return os.posix_spawn(sys.executable, arguments, os.environ)
    finally:
        os.close(fd)


def read_order(fd: int) -> Order:
    """Read the order that `exec_worker` wrote."""
    with open(fd, "rb") as file:
        return msgspec.json.decode(file.read(), type=Order)
