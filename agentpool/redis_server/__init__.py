"""The embedded Redis server: find a binary, start it or adopt the one that runs, and stop it (Linux).

May import config, clock and errors, and redis-py. Begin at `server.py`: what one server object does. Each step has a
file: `adopting.py`, `launching.py`, `stopping.py`. Below them lie what they stand on: `binaries.py` (programs),
`processes.py` (pids), `folder.py` (files and the lock), `record.py` (server.json), `sockets.py` (where it listens),
`settings.py` (redis.conf), `answers.py` (what a server says) and `explain.py` (what to do when it fails).

Theory of operation. One data directory has at most one server, and the server outlives whoever started it:

* `server.lock` is flocked by the starter, and the server inherits the locked descriptor. So the lock is held exactly
  as long as a start is under way or a server lives, whatever dies and however; no clean-up is needed.
* Whoever cannot get the lock adopts: it asks the server on the socket who it is. The kernel says which process
  listens there (SO_PEERCRED), so a file that went stale can never name the wrong one.
* `server.json` remembers which product and version wrote the data, and the process: pid, start time, boot id and pid
  namespace. A process is only ever signalled through a pidfd that was opened *before* its start time was compared.

Nothing here deletes data: what cannot be loaded is left alone, with an error that has the command to set it aside.
Everything is synchronous and may wait; call it in a thread from an event loop.
"""

from agentpool.redis_server.answers import running_url
from agentpool.redis_server.binaries import Binary, find_binary
from agentpool.redis_server.server import EmbeddedServer
from agentpool.redis_server.sockets import socket_path_for

__all__ = ["Binary", "EmbeddedServer", "find_binary", "running_url", "socket_path_for"]
