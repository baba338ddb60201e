"""Everything that one process does to host agents of one pool, wherever it is written down what shall be here.

A worker drives it from Redis, `agentpool.client.local` from memory: both hand it agents to hold and tasks to carry
out, and give it a `Registry` in which it notes what becomes of agents. May import pool and what lies below; never the
store. Begin at `host.py`; `pinned.py` is the life of an agent that was spawned, `by_type.py` the warm agents for tasks
by type, `run.py` one task.
"""

from agentpool.hosting.host import Host
from agentpool.hosting.place import HostSettings, Marks, Place, Registry
from agentpool.hosting.run import GIVE_BACK, Ending, Run

__all__ = ["GIVE_BACK", "Ending", "Host", "HostSettings", "Marks", "Place", "Registry", "Run"]
