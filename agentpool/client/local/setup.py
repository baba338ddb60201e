"""Which local pools there are: those that the caller gives classes for, or all of the configuration file."""

from pathlib import Path

from agentpool.agent import AgentType
from agentpool.client.choice import LocalPools
from agentpool.client.local.backend import LocalBackend
from agentpool.config import load
from agentpool.errors import ConfigError
from agentpool.hosting.loading import load_types, make_importable, types_by_name
from agentpool.protocol.codec import check_name

__all__ = ["find_local_pools"]


def find_local_pools(config: str | Path | None, pools: LocalPools | None) -> LocalBackend:
    """Return the backend, still to be opened; raises `ConfigError`.

    Settings come from the configuration file and the environment as they do for a master; with `pools`, a file is not
    needed, and only the pools given there begin.
    """
    if pools is None:
        settings = load(config_path=config).settings
        make_importable(settings.app_dir)
        loaded = {name: (pool, _load(name, pool.agents)) for name, pool in settings.pools.items()}
        return LocalBackend(loaded, settings.labels)
    types = {check_name("pool", name): _types_of(name, classes) for name, classes in pools.items()}
    if not types:
        raise ConfigError(
            'pools is empty: give the classes of at least one pool, as pools={"developer_pool": [Reviewer]}'
        )
    # So that the classes need not be named in a file as well.
    flags = {f"pools.{name}.agents": [_spec(kind.cls) for kind in known.values()] for name, known in types.items()}
    settings = load(config_path=config, flags=flags, require_file=False).settings
    return LocalBackend({name: (settings.pools[name], known) for name, known in types.items()}, settings.labels)


def _types_of(name: str, classes: object) -> dict[str, AgentType]:
    if not isinstance(classes, list | tuple | set | frozenset) or not classes:
        raise ConfigError(f'pools["{name}"] is {classes!r}: give a list of agent classes')
    return types_by_name((getattr(cls, "__qualname__", repr(cls)), cls) for cls in classes)


def _spec(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"


def _load(name: str, specs: tuple[str, ...]) -> dict[str, AgentType]:
    try:
        return load_types(specs)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f'The agents of pool "{name}" cannot be imported: {type(error).__name__}: {error}') from error
