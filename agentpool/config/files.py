"""Settings from the configuration file: which file, its syntax, its keys."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentpool.config.checking import KeyPath, show, unknown_hint
from agentpool.config.entries import (
    POOL_TYPES,
    SECTION_TYPES,
    SECTIONS,
    TENANT_TYPES,
    TENANTS,
    TOP_TYPES,
    Entry,
    Layer,
    dotted,
    field_type,
)
from agentpool.errors import ConfigError

__all__ = ["MINIMAL_FILE", "SYSTEM_FILE", "File", "expand_home", "find_file"]

FILE_NAME = "agentpool.toml"
SYSTEM_FILE = Path("/etc/agentpool/agentpool.toml")

MINIMAL_FILE = """\
# agentpool.toml
[pools.developer_pool]
role_type = "developer"
agents = ["myapp.agents:Reviewer"]   # module:Class
min_workers = 1
max_workers = 15
agents_per_worker = 10
"""


@dataclass(frozen=True, slots=True)
class File:
    """A configuration file that was found and parsed; `label` is its name in messages."""

    path: Path
    label: str
    layer: Layer


def find_file(given: str | os.PathLike[str] | None, environ: Mapping[str, str], cwd: Path) -> File | None:
    """Read the given file, else AGENTPOOL_CONFIG's, else the first default that exists, else None.

    Raises ConfigError when a file that was named is absent, or when one cannot be read or is not TOML.
    """
    named = os.fspath(given) if given is not None else environ.get("AGENTPOOL_CONFIG")
    if named:
        path = cwd / expand_home(named, environ)
        if (data := _read(path, named)) is None:
            raise ConfigError(f"{named}: no such file. Write one, for example:\n\n{MINIMAL_FILE}")
        return File(path, named, _parse(data, named))
    for path, label in ((cwd / FILE_NAME, FILE_NAME), (SYSTEM_FILE, str(SYSTEM_FILE))):
        if (data := _read(path, label)) is not None:
            return File(path, label, _parse(data, label))
    return None


def expand_home(text: str, environ: Mapping[str, str]) -> str:
    """Expand a leading `~` by the given environment's HOME, and `~user` by the system's accounts."""
    home = environ.get("HOME")
    if home and (text == "~" or text.startswith("~/")):
        return home + text[1:]
    return os.path.expanduser(text)


def _read(path: Path, label: str) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{label}: cannot be read: {error.strerror}. Name another file with --config.") from None


def _parse(data: bytes, label: str) -> Layer:
    """Return the layer of a TOML text; raises ConfigError with file:line:column when it is not TOML."""
    try:
        # Editors on Windows begin a file with a byte order mark, which tomllib refuses.
        document = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{label}:{line}: is not UTF-8; save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        # Beside TOMLDecodeError: numbers of thousands of digits, and lists nested as deep.
        raise ConfigError(_syntax_problem(label, str(error), data)) from None
    layer = Layer()
    _add_table(layer, label, (), document)
    return layer


def _syntax_problem(label: str, message: str, data: bytes) -> str:
    place = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if place:
        return f"{label}:{place[1]}:{place[2]}: {message[: place.start()]}"
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    return f"{label}:{lines}: {message}"


def _add_table(layer: Layer, label: str, path: KeyPath, value: object) -> None:
    if not isinstance(value, dict):
        layer.problems.append(f"{label}: {dotted(path)}: must be a table, as [{dotted(path)}]; it is {show(value)}")
        return
    if len(path) == 2:
        layer.pools.append(path[1])
    for key, item in value.items():
        here = (*path, key)
        if _is_table(here):
            _add_table(layer, label, here, item)
        elif field_type(here) is not None:
            layer.add(here, Entry(item, f"{label}: {dotted(here)}"))
        else:
            layer.problems.append(f"{label}: {dotted(here)}: unknown key.{_key_hint(here)}")


def _is_table(path: KeyPath) -> bool:
    if path[0] == "pools":
        return len(path) <= 2 or (len(path) <= 4 and path[2] == TENANTS)
    return len(path) == 1 and path[0] in SECTIONS


def _key_hint(path: KeyPath) -> str:
    """Say where a key belongs that stands in the wrong table, else which key is nearest."""
    key = path[-1]
    if key in POOL_TYPES or key == TENANTS:
        return " It belongs in the table of a pool, [pools.<name>]."
    if key in TOP_TYPES:
        return " It belongs at the top of the file, before the first table."
    for section, known in SECTION_TYPES.items():
        if key in known:
            return f" It belongs in [{section}]."
    if key in TENANT_TYPES:
        return f" It belongs in the table of a tenant, [pools.<name>.{TENANTS}.<tenant>]."
    match len(path):
        case 5:
            siblings = tuple(TENANT_TYPES)
        case 3:
            siblings = (*POOL_TYPES, TENANTS)
        case 2:
            siblings = tuple(SECTION_TYPES[path[0]])
        case _:
            siblings = (*TOP_TYPES, *SECTIONS, "pools")
    return unknown_hint(key, siblings)
