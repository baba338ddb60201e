"""A subscription proves itself alive, is renewed when it cannot, and does without the right to subscribe."""

import asyncio

import pytest
import redis
from support.wait import wait_until

from agentpool.store import Connection
from agentpool.store import subscription as module
from agentpool.store.link import Listener
from agentpool.store.subscription import Subscription


async def test_a_quiet_subscription_is_pinged_and_one_that_does_not_answer_is_renewed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(module, "PONG_TIMEOUT", 0.1)
    connection = Connection(redis_url)
    messages: list[tuple[str, str]] = []
    ready: list[bool] = []
    subscription = Subscription(
        connection, ["a", "b"], on_message=lambda *m: messages.append(m), on_ready=lambda: ready.append(True)
    )
    subscription.start()

    async def pinged() -> bool:
        return any(client["cmd"] == "ping" and int(client["sub"]) for client in await connection.redis.client_list())

    await wait_until(pinged)
    await connection.redis.publish("b", "hello")
    await wait_until(lambda: messages == [("b", "hello")])
    assert len(ready) == 1, "once for all channels"
    await connection.redis.client_pause(500)
    await wait_until(lambda: len(ready) > 1)
    assert subscription.is_up
    await subscription.stop()
    await subscription.stop()
    await connection.close()


async def test_a_quiet_subscription_that_answers_is_kept(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = module._lost

    async def wait_longer(link: Listener, timeout: float) -> None:
        await wait(link, timeout)
        await asyncio.sleep(0.02)  # a timer is late by more than an answer takes

    monkeypatch.setattr(module, "_lost", wait_longer)
    monkeypatch.setattr(module, "PING_INTERVAL", 0.3)
    monkeypatch.setattr(module, "PONG_TIMEOUT", 0.1)
    connection = Connection(redis_url, command_timeout=0.5)
    ready: list[bool] = []
    subscription = Subscription(connection, ["a"], on_message=lambda *m: None, on_ready=lambda: ready.append(True))
    subscription.start()
    await wait_until(lambda: ready)
    await asyncio.sleep(2)  # three pings and what follows them
    assert ready == [True]
    await subscription.stop()
    await connection.close()


async def test_a_forbidden_subscription_is_tried_again_later(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORBIDDEN_DELAY", 0.05)
    connection = Connection(redis_url)
    ready: list[bool] = []
    with redis.Redis.from_url(redis_url) as admin:
        admin.acl_setuser("default", enabled=True, reset_channels=True)
        try:
            subscription = Subscription(
                connection, ["a"], on_message=lambda *m: None, on_ready=lambda: ready.append(True)
            )
            subscription.start()
            await wait_until(lambda: subscription._warned)
            assert not subscription.is_up
        finally:
            admin.acl_setuser("default", enabled=True, channels=["*"])
    await wait_until(lambda: ready)
    await subscription.stop()
    await connection.close()
