"""What a program or a person may ask of agentpool, over Redis.

May import doctor, store and what lies below. Begin at `client.py` (connecting), then `pool.py` (what there is to
ask); `spawning.py` and `tasks.py` carry it out, and `replies.py` is how they learn of the answer.
"""

from agentpool.client.agents import AgentHandle
from agentpool.client.client import Client, RedisClient, connect
from agentpool.client.pool import Pool
from agentpool.client.tasks import TaskHandle

__all__ = ["AgentHandle", "Client", "Pool", "RedisClient", "TaskHandle", "connect"]
