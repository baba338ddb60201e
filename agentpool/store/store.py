"""The store: one object with a door for each kind of thing."""

from typing import Any

from agentpool.store.agents import Agents
from agentpool.store.audit import Audit
from agentpool.store.connection import Connection
from agentpool.store.events import Events
from agentpool.store.hosts import Hosts
from agentpool.store.letters import Letters
from agentpool.store.locks import Locks
from agentpool.store.mending import Mending
from agentpool.store.pools import Pools
from agentpool.store.tasks import Tasks
from agentpool.store.tenants import Tenants
from agentpool.store.workers import Workers

__all__ = ["Store"]


class Store:
    """Everything of one installation that stands in Redis."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.keys = connection.keys
        self.agents = Agents(connection)
        self.workers = Workers(connection)
        self.tasks = Tasks(connection)
        self.letters = Letters(connection)
        self.tenants = Tenants(connection)
        self.audit = Audit(connection)
        self.pools = Pools(connection)
        self.hosts = Hosts(connection)
        self.locks = Locks(connection)
        self.events = Events(connection)
        self.mending = Mending(connection)

    @classmethod
    def open(cls, url: str, **options: Any) -> "Store":
        """Return a store on this URL, with the options of `Connection`; nothing is sent yet."""
        return cls(Connection(url, **options))

    async def close(self) -> None:
        """Close every connection; may be called twice."""
        await self.connection.close()
