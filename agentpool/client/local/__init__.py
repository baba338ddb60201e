"""`local://`: pools inside this process, asked like those over Redis.

Begin at `backend.py`; a `LocalPool` (`pool.py`) is a host of agents together with what Redis would hold for it: the
pinned agents (`registry.py`), the tasks (`tasks.py`), and what has happened (`events.py`). `setup.py` finds out which
pools there are.
"""

from agentpool.client.local.backend import LocalBackend
from agentpool.client.local.setup import find_local_pools

__all__ = ["LocalBackend", "find_local_pools"]
