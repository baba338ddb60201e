"""One Redis command as a person types it, on a connection of its own, its replies as the server sends them."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from agentpool.errors import AgentPoolError
from agentpool.store.connection import translate

if TYPE_CHECKING:
    from agentpool.client.client import Client

__all__ = ["RedisRefused", "raw_command"]

_STREAMS = {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR"}


class RedisRefused(AgentPoolError):
    """The server answered with an error, whose text this is."""

    code = "REDIS_ERROR"


async def raw_command(client: "Client", words: Sequence[str]) -> AsyncIterator[Any]:
    """Send a command and yield its reply: bytes, int, None or lists of them. Subscriptions yield for ever."""
    pool = client.store.connection.redis.connection_pool
    # As redis-cli speaks by default, and without a timeout, because a command may be meant to wait.
    options = {**pool.connection_kwargs, "protocol": 2, "decode_responses": False, "socket_timeout": None}
    connection = pool.connection_class(**options)
    try:
        await connection.connect()
        await connection.send_command(*words)
        yield await connection.read_response()
        while words[0].upper() in _STREAMS:
            yield await connection.read_response()
    except ResponseError as error:
        raise RedisRefused(str(error)) from None
    except (RedisError, OSError) as error:
        raise translate(error, client.store.connection.url) from None
    finally:
        await connection.disconnect()
