"""One file for each peer, imported only in its own environment: its workers, its task, and how it is used.

Each has `PACKAGES` (whose versions are told), `worker_commands()` and a class `Peer`. All keep results, all have two
worker processes, and ten slots in each where there are slots. Other settings are those with which the peer is fastest
here, of what its documentation offers.
"""
