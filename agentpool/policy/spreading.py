"""On which host a worker is started: where a further one finds most room.

Room is the share of a CPU that a further worker would get beside those that are there, and the memory that is
available, in portions of `PORTION_MB`; the scarcer of the two counts. A host is left out while its master is silent or
says why it starts none, at its bound of workers, and while less memory is available than it keeps free.
"""

from collections.abc import Iterable, Mapping, Sequence

from agentpool.protocol.records import HostRecord, HostsView

__all__ = ["PORTION_MB", "is_full", "open_hosts", "spread"]

PORTION_MB = 256


def is_full(host: HostRecord, more: int = 0) -> bool:
    """Tell whether the host has no room for a worker beside those it has and `more`."""
    at_bound = bool(host.workers_max) and host.workers + more >= host.workers_max
    return at_bound or (bool(host.min_free_mb) and host.available_mb < host.min_free_mb)


def open_hosts(view: HostsView, alive_ms: int, labels: Iterable[str] = ()) -> list[HostRecord]:
    """Return the hosts that start workers now and have all these labels."""
    wanted = set(labels)
    return [host for host in view.living(alive_ms) if not host.closed and wanted <= set(host.labels.split())]


def spread(hosts: Sequence[HostRecord], count: int, ordered: Mapping[str, int]) -> list[str]:
    """Return the masters that shall start `count` workers, one for each; fewer when the hosts are full.

    `ordered`: by master, workers that were ordered since it last counted its own.
    """
    more = dict(ordered)
    chosen: list[str] = []
    while len(chosen) < count:
        able = [host for host in hosts if not is_full(host, more.get(host.master, 0))]
        if not able:
            break
        best = max(able, key=lambda host: (_room(host, more.get(host.master, 0)), host.available_mb, host.master))
        chosen.append(best.master)
        more[best.master] = more.get(best.master, 0) + 1
    return chosen


def _room(host: HostRecord, more: int) -> float:
    share = (host.cpus or 1.0) / (host.workers + more + 1)
    return min(share, host.available_mb / PORTION_MB) if host.memory_mb else share
