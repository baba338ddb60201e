"""What a queued task costs the server's memory."""

import redis

from bench.tasks.filling import fill, pool_server
from bench.tasks.own import TENANTS
from bench.tasks.sizes import Sizes

__all__ = ["measure"]


def measure(sizes: Sizes) -> tuple[tuple[float, ...], str]:
    """Return the bytes that each of many tasks adds."""
    each = sizes.queued // len(TENANTS)
    with pool_server() as url, redis.Redis.from_url(url) as server:
        fill(url, TENANTS, 10)  # scripts are loaded, buffers have their size
        before = server.info("memory")["used_memory"]
        fill(url, TENANTS, each)
        grown = server.info("memory")["used_memory"] - before
    queued = each * len(TENANTS)
    return (grown / queued,), f"{queued:,} tasks of {len(TENANTS)} tenants"
