"""All access to Redis. One typed door: each method is keys + script + decode + error.

May import policy, protocol and what lies below. Begin at `connection.py` (how Redis is reached and how its errors
become ours, over the one connection of `link.py`), `scripts.py` (how Lua is loaded and called), then the file named for
what you look for.
"""

from agentpool.store.connection import Connection
from agentpool.store.store import Store

__all__ = ["Connection", "Store"]
