"""The task path: agentpool and its peers on the same Redis server, in turns.

Begin at `sizes.py` (how much), `measuring.py` (what every system is asked to do) and `comparing.py` (the rounds).
`peers/` has one small file for each peer; `environments.py` installs them, `drive.py` runs one of them there.
`own.py` is the same for agentpool; `poisson.py`, `killing.py`, `syncing.py`, `claiming.py` and `memory.py` measure what
only agentpool is asked. `report.py` makes the table.
"""
