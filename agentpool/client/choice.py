"""Redis or this process: what the caller and the environment say."""

from collections.abc import Mapping, Sequence

from agentpool.agent import Agent
from agentpool.errors import ConfigError

__all__ = ["LOCAL_URL", "LocalPools", "is_local", "uses_processes"]

LOCAL_URL = "local://"
LocalPools = Mapping[str, Sequence[type[Agent]]]
SWITCH = "USE_MULTIPROCESSING"
YES, NO = ("", "true", "1", "yes", "on"), ("false", "0", "no", "off")


def is_local(url: str | None) -> bool:
    """Tell whether a URL means pools inside this process; raises `ConfigError` when it names something in them."""
    if url is None or not url.startswith("local:"):
        return False
    if url not in ("local:", LOCAL_URL):
        raise ConfigError(f'The URL "{url}" has no meaning: local pools have neither host nor path. Write {LOCAL_URL}')
    return True


def uses_processes(environ: Mapping[str, str]) -> bool:
    """Tell whether USE_MULTIPROCESSING leaves agents to worker processes; raises `ConfigError` for other words."""
    word = environ.get(SWITCH, "").strip().lower()
    if word not in (*YES, *NO):
        raise ConfigError(f"{SWITCH} is {environ[SWITCH]!r}: it must be true or false")
    return word in YES
