"""What a source of settings yields: entries that remember where they stood, in a `Layer`.

The keys that exist are read off the structs in `settings.py`, so a new field needs no change here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agentpool.config.checking import KeyPath, quoted, show
from agentpool.config.settings import LogSettings, PoolSettings, RedisSettings, Settings, TenantOverrides

__all__ = [
    "POOL_TYPES",
    "REDIS_URL",
    "SECTIONS",
    "SECTION_TYPES",
    "TENANTS",
    "TENANT_TYPES",
    "TOP_TYPES",
    "Entry",
    "Layer",
    "convert",
    "dotted",
    "field_type",
]

REDIS_URL: KeyPath = ("redis", "url")
SWITCHES: Mapping[str, bool] = {
    "true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
"""How sources of text spell true and false."""
LISTED = {"agents": '"myapp.agents:Reviewer"', "labels": '"gpu"'}
"""An example for each setting that is a list."""
SECTIONS: dict[str, type[msgspec.Struct]] = {"redis": RedisSettings, "log": LogSettings}


def _types(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {item.name: item.type for item in msgspec.structs.fields(struct)}


TENANTS = "tenants"
"""The table of a pool that holds a table for each tenant."""
POOL_TYPES = {name: kind for name, kind in _types(PoolSettings).items() if name != TENANTS}
TENANT_TYPES = _types(TenantOverrides)
SECTION_TYPES = {name: _types(struct) for name, struct in SECTIONS.items()}
TOP_TYPES = {name: kind for name, kind in _types(Settings).items() if name not in (*SECTIONS, "pools")}


def field_type(path: KeyPath) -> Any:
    """Return the type of the setting at a path, or None when there is no such setting."""
    match path:
        case (name,):
            return TOP_TYPES.get(name)
        case (section, name):
            return SECTION_TYPES.get(section, {}).get(name)
        case ("pools", pool, name) if pool:
            return POOL_TYPES.get(name)
        case ("pools", pool, "tenants", tenant, name) if pool and tenant:
            return TENANT_TYPES.get(name)
        case _:
            return None


def dotted(path: KeyPath) -> str:
    """Return a path as TOML spells it: `pools.developer_pool.min_workers`."""
    return ".".join(word if re.fullmatch(r"[A-Za-z0-9_-]+", word) else quoted(word) for word in path)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value as it was given; `source` is how its owner would find it again."""

    value: object
    source: str
    is_text: bool = False
    """From a source that knows only text, so that numbers are read from it leniently."""


@dataclass(slots=True)
class Layer:
    """What one source says; `pools` are the pools it names, also those without any entry."""

    entries: dict[KeyPath, Entry] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def tenants(self) -> list[tuple[str, str]]:
        """The tenants that it names, as (pool, tenant)."""
        named = ((path[1], path[3]) for path in self.entries if path[2:3] == (TENANTS,))
        return list(dict.fromkeys(named))

    def add(self, path: KeyPath, entry: Entry) -> None:
        """Keep an entry, and its pool's name."""
        self.entries[path] = entry
        if path[0] == "pools" and path[1] not in self.pools:
            self.pools.append(path[1])


def convert(path: KeyPath, entry: Entry) -> Any:
    """Return an entry's value in its setting's type; raises ValueError with what the value must be."""
    kind = field_type(path)
    value = entry.value
    if entry.is_text and isinstance(value, str):
        text = value.strip()
        value = SWITCHES.get(text.lower(), text) if kind is bool else text
        value = _split(text) if kind == tuple[str, ...] else value
    try:
        return msgspec.convert(value, kind, strict=not entry.is_text)
    except msgspec.ValidationError:
        inside = " holding something else" if isinstance(value, list) and kind == tuple[str, ...] else ""
        raise ValueError(f"must be {_expected(path[-1], kind)}; it is {show(value)}{inside}") from None


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _expected(name: str, kind: Any) -> str:
    words: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    words |= {kind | None: text for kind, text in words.items()}
    if kind in words:
        return words[kind]
    if kind == tuple[str, ...]:
        return f"a list of texts, as [{LISTED[name]}]"
    return "one of " + ", ".join(f'"{choice}"' for choice in kind.__args__)
