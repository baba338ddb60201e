"""What the parts say to each other, with no I/O: states, keys, records, messages, events.

May import only errors, clock and the standard library with msgspec. Begin at `states.py`, then `keys.py`.
"""
