"""What a program or a person may ask of agentpool, wherever its agents live.

May import doctor, store and what lies below. Begin at `client.py` (connecting), then `pool.py` (what there is to
ask). Names, input and results are dealt with there; `backend.py` says what is asked of whatever carries it out. On
Redis that is `redis_backend.py`, with `redis_spawning.py`, `redis_tasks.py`, and `replies.py`, which is how they learn
of the answer. Only these and `raw.py` import the store, and only when a client opens.
"""

from agentpool.client.agents import AgentHandle
from agentpool.client.client import Client, RedisClient, connect
from agentpool.client.pool import Pool
from agentpool.client.tasks import TaskHandle

__all__ = ["AgentHandle", "Client", "Pool", "RedisClient", "TaskHandle", "connect"]
