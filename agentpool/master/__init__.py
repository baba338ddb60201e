"""The master: supervises the workers of its host, and leads pools.

May import everything below; never `agentpool_worker`, which it knows as a command line. Begin at `supervisor.py` (all
pools of one master), then `keeper.py` (one pool). One loop, one file: `leadership.py`, `autoscaler.py`, `reaper.py`,
`watcher.py`.
"""
