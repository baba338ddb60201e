"""`local://`: pools inside this process, asked like those over Redis.

Begin at `backend.py`; a `LocalPool` (`pool.py`) is a host of agents together with what Redis would hold for it: the
pinned agents (`registry.py`), the tasks (`tasks.py`), and what has happened (`events.py`). `setup.py` finds out which
pools there are.

Of tasks, `admission.py` says what is accepted, `waiting.py` where they wait (`lanes.py` for those by type, in which
tenants have turns), `running.py` who is next and on whose account (`tenants.py`), `outcomes.py`, `letters.py` and
`trails.py` what is kept of them.
"""

from agentpool.client.local.backend import LocalBackend
from agentpool.client.local.setup import find_local_pools

__all__ = ["LocalBackend", "find_local_pools"]
