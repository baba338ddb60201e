"""Pure decisions: what is seen goes in, actions or a verdict come out. No asyncio, no Redis, no logging.

May import protocol and what lies below. `reconcile.py` decides how many workers a pool shall have, `scaling.py` when
utilization asks for more or fewer, `liveness.py` whether a worker is frozen or blocked, `restarts.py` when something
that failed is tried again, `recycling.py` when an agent of an in-process pool is renewed, `breaker.py` when creating
agents is paused.
"""
