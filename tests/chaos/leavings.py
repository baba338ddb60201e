"""What must not be there when all masters have stopped and all agents were ended: processes, keys, sockets, files."""

import contextlib
import re
import stat

import psutil
from chaos.cluster import POOL, Cluster

__all__ = ["find_leavings", "is_leaving"]

_OF_THE_PAST = re.compile(
    rf"pools|install|pool:{POOL}"
    rf"|pool:{POOL}:(types|events|history|audit|limits|labels|lanes|tenants|affinity|served|dead|(letter|key|ended|trail):.+)"
    rf"|task:{POOL}/.+|tenant:{POOL}:[^:]+:(tokens|requests|usage)"
)
"""Keys that are settings, or tell of what was."""


def is_leaving(key: str) -> bool:
    """Tell whether a key should be gone by then."""
    return not _OF_THE_PAST.fullmatch(key)


async def find_leavings(cluster: Cluster) -> list[tuple[str, str]]:
    """Return what is left: what it is, and where."""
    found = []
    for process in cluster.processes():
        with contextlib.suppress(psutil.Error):
            found.append((f"process {process.pid}", " ".join(process.cmdline())[:100]))
    async for key in cluster.redis.scan_iter(count=1000):
        if is_leaving(key) and not await _is_timer_of_tenants(cluster, key):
            found.append((key, "is a key that should be gone"))
    for host in cluster.hosts:
        for path in host.folder.rglob("*"):
            if stat.S_ISSOCK(path.stat().st_mode) or path.parent.name in ("marks", "stacks"):
                found.append((str(path.relative_to(cluster.folder)), "is a file that should be gone"))
    return found


async def _is_timer_of_tenants(cluster: Cluster, key: str) -> bool:
    """Windows of tenants lapse by themselves, whoever is there."""
    if key != cluster.keys.due(POOL):
        return False
    return all(timer.startswith("tenant ") for timer in await cluster.redis.zrange(key, 0, -1))
