"""The life of a pinned agent, where no worker is needed to see it."""

from typing import Any

from support.wait import wait_until

from agentpool.agent import Agent, AgentType, Context
from agentpool.hosting import HostSettings, Place
from agentpool.hosting.pinned import Pinned
from agentpool.pool import PoolConfig
from agentpool.protocol.records import DesiredAgent
from agentpool.protocol.retrying import RetryPolicy


class Keeper(Agent):
    async def run(self, ctx: Context, input: int) -> int:
        return input

    async def restore(self, ctx: Context, state: Any) -> None:
        pass


async def test_whatever_is_raised_while_an_agent_starts_counts_as_a_failure() -> None:
    told: list[tuple[str, bool]] = []

    class Registry:
        async def fail(self, *_: Any, failures: int, error: str, final: bool) -> bool:
            told.append((error, final))
            return True

        async def snapshot(self, name: str) -> str:
            return (b"\xff" + b"secret" * 10_000).decode()

    settings = HostSettings(
        pool="p", worker_id="w1", capacity=1, agents=PoolConfig(), task_timeout=1, max_result_bytes=1000,
        retry=RetryPolicy(), boot_failures_max=3, boot_backoff=0.01, boot_backoff_max=1,
    )  # fmt: skip
    registry: Any = Registry()
    upkeep: Any = None
    place = Place(settings, {"Keeper": AgentType(Keeper)}, registry, run_by_type=registry.fail)
    desired = DesiredAgent(agent_id="p/a", agent_type="Keeper", incarnation=1)
    pinned = Pinned(place, desired, upkeep, lambda *_: None)
    await wait_until(pinned._life.done)
    assert pinned.error is None
    assert [final for _, final in told] == [False, False, True]
    assert all(error.startswith("UnicodeDecodeError") and len(error) < 100 for error, _ in told)
