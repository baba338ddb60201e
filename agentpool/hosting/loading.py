"""Agent classes by name: `module:Class`, imported from the application's folder."""

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from agentpool.agent import Agent, AgentType, check_agent_class
from agentpool.errors import ConfigError

__all__ = ["load_types", "make_importable", "types_by_name"]


def make_importable(app_dir: str) -> None:
    """Put the folder of the agents' modules where imports find it first."""
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)


def load_types(specs: Iterable[str]) -> dict[str, AgentType]:
    """Import `module:Class` specs; raises `ConfigError` for what cannot be used, or whatever a module raises."""
    return types_by_name((spec, _find(spec)) for spec in specs)


def types_by_name(classes: Iterable[tuple[str, type[Agent]]]) -> dict[str, AgentType]:
    """Return the agent types of a pool from pairs of words that name a class, and the class; raises `ConfigError`."""
    types: dict[str, AgentType] = {}
    for spec, cls in classes:
        loaded = AgentType(check_agent_class(spec, cls))
        if loaded.name in types:
            raise ConfigError(f"{spec}: two classes of this pool are named {loaded.name}; rename one of them")
        types[loaded.name] = loaded
    return types


def _find(spec: str) -> Any:
    module_name, _, class_name = spec.partition(":")
    if not (module_name and class_name):
        raise ConfigError(f'"{spec}" is no agent class: write module:Class')
    found: Any = importlib.import_module(module_name)
    for part in class_name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{spec}: module {module_name} has no {class_name}")
        found = getattr(found, part)
    return found
