"""Settings from environment variables and command-line flags."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from agentpool.config.checking import KeyPath, quoted, show, unknown_hint
from agentpool.config.entries import (
    POOL_TYPES,
    REDIS_URL,
    SECTION_TYPES,
    TENANT_TYPES,
    TENANTS,
    TOP_TYPES,
    Entry,
    Layer,
    dotted,
    field_type,
)

__all__ = ["RESERVED", "read_environment", "read_flags", "read_flat_names", "read_redis_environment"]

PREFIX = "AGENTPOOL_"
RESERVED = frozenset({"AGENTPOOL_CONFIG"})
"""`AGENTPOOL_*` variables that are no settings and are not reported as unknown."""

FLAT_NAMES: tuple[tuple[str, str, float], ...] = (
    # name, setting of a pool, its unit in seconds (0: not a time in other units). Of two names for one setting the
    # later wins.
    ("MIN_WORKERS", "min_workers", 0),
    ("MAX_WORKERS", "max_workers", 0),
    ("DEFAULT_CONCURRENCY", "agents_per_worker", 0),
    ("MAX_AGENTS_PER_WORKER", "agents_per_worker", 0),
    ("AGENTS_PER_WORKER", "agents_per_worker", 0),
    ("HEARTBEAT_INTERVAL", "heartbeat_interval", 0),
    ("WORKER_HEARTBEAT_TIMEOUT_MS", "heartbeat_timeout", 0.001),
    ("HEARTBEAT_TIMEOUT", "heartbeat_timeout", 0),
    ("SCALE_UP_THRESHOLD", "scale_up_threshold", 0),
    ("SCALE_DOWN_THRESHOLD", "scale_down_threshold", 0),
    ("SCALE_COOLDOWN_MS", "scale_cooldown", 0.001),
    ("SCALE_COOLDOWN", "scale_cooldown", 0),
    ("AGENT_TIMEOUT_MS", "task_timeout", 0.001),
)


def read_environment(environ: Mapping[str, str], file: Layer) -> Layer:
    """Return what `AGENTPOOL_*` variables say; the pools and tenants of the file are matched whatever their case.

    An empty variable counts as unset: compose files and CI systems pass on what they do not have as empty.
    """
    layer = Layer()
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in RESERVED or not text.strip():
            continue
        path = _variable_path(name)
        if field_type(path) is None:
            if not _is_service_link(name, text):
                layer.problems.append(f"{_plain(name)}: unknown setting.{_variable_hint(name, path, file)}")
            continue
        try:
            layer.add(_as_in_file(path, file), Entry(text, name, is_text=True))
        except ValueError as error:
            layer.problems.append(f"{name}: {error}")
    return layer


def _variable_path(name: str) -> KeyPath:
    """`AGENTPOOL_POOLS__A__B` is `("pools", "a", "b")`; a pool's name may itself hold two underscores."""
    head, separator, rest = name[len(PREFIX) :].lower().partition("__")
    if head == "pools":
        return _pool_path(rest, "__")
    return (head, rest) if separator else (head,)


def _pool_path(words: str, mark: str) -> KeyPath:
    """`a__b` is a pool's setting, `a__tenants__t__b` one of a tenant."""
    names, _, key = words.rpartition(mark)
    pool, of_tenant, tenant = names.partition(f"{mark}{TENANTS}{mark}")
    return ("pools", pool, TENANTS, tenant, key) if of_tenant else ("pools", names, key)


def _as_in_file(path: KeyPath, file: Layer) -> KeyPath:
    """Spell pool and tenant as the file does; raises ValueError when it has several such."""
    if path[0] != "pools":
        return path
    pool = _spelled("pools", path[1], file.pools)
    if path[2] != TENANTS:
        return (path[0], pool, path[2])
    tenant = _spelled("tenants", path[3], [tenant for owner, tenant in file.tenants if owner == pool])
    return (path[0], pool, TENANTS, tenant, path[4])


def _spelled(kind: str, name: str, known: Iterable[str]) -> str:
    matches = [one for one in known if one.lower() == name]
    if len(matches) > 1:
        raise ValueError(f"could mean any of the {kind} {', '.join(matches)}; rename all but one")
    return matches[0] if matches else name


def _is_service_link(name: str, text: str) -> bool:
    """Tell whether Kubernetes made this variable, as it does in every pod for a Service named agentpool…"""
    link = re.fullmatch(r"AGENTPOOL_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?)", name)
    return link is not None and ("SERVICE" in name or "_TCP" in name or "_UDP" in name or "://" in text)


def _variable_hint(name: str, path: KeyPath, file: Layer) -> str:
    """Name the nearest variable; compared without the prefix, which would make any two names alike."""
    known = [key.upper() for key in TOP_TYPES]
    known += [f"{section}__{key}".upper() for section, keys in SECTION_TYPES.items() for key in keys]
    named = [path[1]] if len(path) >= 3 and path[1] else []
    known += [f"pools__{pool}__{key}".upper() for pool in (*file.pools, *named) for key in POOL_TYPES]
    tenants = [*file.tenants, *([(path[1], path[3])] if len(path) == 5 else [])]
    known += [f"pools__{pool}__{TENANTS}__{tenant}__{key}".upper() for pool, tenant in tenants for key in TENANT_TYPES]
    match = get_close_matches(name[len(PREFIX) :].upper(), known, n=1)
    if match:
        return f' Did you mean "{PREFIX}{match[0]}"?'
    return " Settings are named as AGENTPOOL_DATA_DIR, AGENTPOOL_REDIS__URL, AGENTPOOL_POOLS__<POOL>__MAX_WORKERS."


def _plain(name: str) -> str:
    return name if name.isprintable() else quoted(name)


def read_redis_environment(environ: Mapping[str, str]) -> Layer:
    """Return redis.url from REDIS_URL, else from REDIS_HOST, REDIS_PORT and REDIS_DB as far as they are set."""
    layer = Layer()
    if url := environ.get("REDIS_URL", "").strip():
        layer.add(REDIS_URL, Entry(url, "REDIS_URL", is_text=True))
        return layer
    given = {name: environ.get(name, "").strip() for name in ("REDIS_HOST", "REDIS_PORT", "REDIS_DB")}
    if "://" in given["REDIS_PORT"]:
        # Kubernetes and docker links set REDIS_PORT=tcp://10.0.0.1:6379 beside any service named redis.
        layer.warnings.append(
            "REDIS_PORT: ignored, as it is a link made by Kubernetes or docker, not a port; set REDIS_URL instead"
        )
        given["REDIS_PORT"] = ""
    given = {name: text for name, text in given.items() if text}
    layer.problems = [f"{name}: {problem}" for name in given if (problem := _part_problem(name, given[name]))]
    if given and not layer.problems:
        layer.add(REDIS_URL, Entry(_join_parts(given), ", ".join(given), is_text=True))
    return layer


def _part_problem(name: str, text: str) -> str | None:
    if name == "REDIS_HOST":
        is_wrong = any(letter in text for letter in "/@?#") or any(letter.isspace() for letter in text)
        return "must be a host name or address alone; put a URL into REDIS_URL" if is_wrong else None
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    if name == "REDIS_PORT" and not (is_number and 1 <= int(text) <= 65535):
        return f"must be from 1 to 65535; it is {show(text)}"
    if name == "REDIS_DB" and not is_number:
        return f"must be the number of a database, as 0; it is {show(text)}"
    return None


def _join_parts(given: Mapping[str, str]) -> str:
    host = given.get("REDIS_HOST", "localhost")
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    return f"redis://{host}:{given.get('REDIS_PORT', '6379')}/{given.get('REDIS_DB', '0')}"


def read_flat_names(environ: Mapping[str, str], pools: Iterable[str]) -> Layer:
    """Return what the flat names of earlier systems say; each applies to every pool."""
    layer = Layer()
    for pool in pools:
        for name, key, unit in FLAT_NAMES:
            if text := environ.get(name, "").strip():
                path = ("pools", pool, key)
                value = _in_seconds(text, unit) if unit else text
                layer.add(path, Entry(value, f"{name} (for {dotted(path)})", is_text=True))
    return layer


def _in_seconds(text: str, unit: float) -> str:
    try:
        return repr(float(text) * unit)
    except ValueError:
        return text  # refused later, with every other value of a wrong type


def _flag_path(name: str) -> KeyPath:
    head, _, rest = name.partition(".")
    return _pool_path(rest, ".") if head == "pools" else (head, rest)


def read_flags(flags: Mapping[str, object]) -> Layer:
    """Return what command-line flags say: `redis_url`, `redis.url` or `pools.<name>.<key>`; None is not given."""
    layer = Layer()
    known: dict[str, KeyPath] = {key: (key,) for key in TOP_TYPES}
    for section, keys in SECTION_TYPES.items():
        known |= {f"{section}{mark}{key}": (section, key) for key in keys for mark in "._"}
    for name, value in flags.items():
        if value is None or name == "embedded":
            continue
        path = known.get(name) or _flag_path(name)
        source = f"--{name if '.' in name else name.replace('_', '-')}"
        if field_type(path) is None:
            layer.problems.append(f"{source}: unknown setting.{unknown_hint(name, tuple(known))}")
        else:
            layer.add(path, Entry(value, source, is_text=isinstance(value, str)))
    if flags.get("embedded") and REDIS_URL in layer.entries:
        layer.problems.append("--embedded and a Redis URL on the command line contradict each other; give one")
    return layer
