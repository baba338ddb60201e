"""Agents in one event loop: warm, bounded, recycled. Usable alone, without Redis; every worker runs inside it.

May import policy, agent, protocol and what lies below; never the store. Begin reading at `pool.py` (what a program
sees) and `core.py` (who holds which agent, and which places are taken). `lease.py` is what `acquire()` returns,
`acquiring.py` and `waiting.py` are for those who must wait, `spawner.py` starts agents as `circuit.py` permits,
`recycler.py` replaces them, `leaving.py` sees them off, `upkeep.py` is the periodic look (`memory.py`: whose memory has
grown), `closing.py` the end, `saving.py`, `saved.py` and `storage.py` what outlives the process, `sync.py` the door for
other threads.
"""

from agentpool.pool.closing import CloseReport
from agentpool.pool.config import PoolConfig
from agentpool.pool.errors import AcquireTimeout, SpawnCircuitOpen, StartFailed, StateRefused
from agentpool.pool.lease import Lease
from agentpool.pool.ledger import PoolEvent
from agentpool.pool.metrics import AgentFacts, PoolMetrics
from agentpool.pool.pool import AgentPool
from agentpool.pool.saving import SaveReport
from agentpool.pool.states import POOLED_MOVES, PooledState
from agentpool.pool.storage import FileStorage, RedisStorage, Storage
from agentpool.pool.sync import SyncPool, run_sync

__all__ = [
    "POOLED_MOVES",
    "AcquireTimeout",
    "AgentFacts",
    "AgentPool",
    "CloseReport",
    "FileStorage",
    "Lease",
    "PoolConfig",
    "PoolEvent",
    "PoolMetrics",
    "PooledState",
    "RedisStorage",
    "SaveReport",
    "SpawnCircuitOpen",
    "StartFailed",
    "StateRefused",
    "Storage",
    "SyncPool",
    "run_sync",
]
