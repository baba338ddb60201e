"""The worker side: a zygote that forks workers, and the worker itself.

May import everything in `agentpool` below the master; the master knows it only as a command line. Begin at
`zygote.py` (what is exec'd), then `worker.py` (one forked process).
"""
