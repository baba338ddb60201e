"""Handles of pinned agents."""

from typing import TYPE_CHECKING, Any, Unpack

from agentpool.client.kinds import Kind
from agentpool.client.requests import AgentTaskOptions, Request, new_request
from agentpool.client.tasks import TaskHandle, run_task, submit_tasks
from agentpool.protocol.keys import split_id
from agentpool.protocol.records import AgentRecord

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["AgentHandle"]


class AgentHandle:
    """One pinned agent, wherever it runs. `id` is `<pool>/<name>`."""

    def __init__(self, client: "Client", agent_id: str, kind: Kind) -> None:
        self.id = agent_id
        self._client, self._kind = client, kind

    def __repr__(self) -> str:
        return f"AgentHandle({self.id!r})"

    async def run(self, input: Any, **options: Unpack[AgentTaskOptions]) -> Any:
        """Have the agent do one task after those that wait already, and return its result.

        `timeout` is in seconds: first the task's, and a second later the end of this wait, which cancels the task.
        """
        return await run_task(self._client, self._request(input, options), self._kind)

    async def submit(self, input: Any, **options: Unpack[AgentTaskOptions]) -> TaskHandle:
        """Put a task into the agent's mailbox, behind what waits there; `timeout` is what its run may take, in s."""
        return (await submit_tasks(self._client, [self._request(input, options)], self._kind))[0]

    async def info(self) -> AgentRecord:
        """Return the agent's record; raises `UnknownAgent` when it has ended."""
        return await self._client.backend.agent(self.id)

    async def terminate(self) -> None:
        """End the agent; what waits in its mailbox fails. May be repeated for an hour after the end."""
        await self._client.backend.terminate(self.id, "terminated on request")

    def _request(self, input: Any, options: AgentTaskOptions) -> Request:
        pool, name = split_id(self.id)
        return new_request(pool, self._kind, input, agent_name=name, **options)
