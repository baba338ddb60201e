"""Which value wins, and what the daemon and its clients get from it.

Flag > AGENTPOOL_* > REDIS_URL, REDIS_HOST… > file > the flat names of earlier systems > default. Sources are laid over
one another as entries that remember where they stood; only what wins is converted and checked, so that a wrong value
that nobody uses stops nobody.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentpool.config.checking import Finding, KeyPath, check, check_redis
from agentpool.config.entries import REDIS_URL, SECTIONS, TENANTS, Entry, Layer, convert, dotted
from agentpool.config.environment import read_environment, read_flags, read_flat_names, read_redis_environment
from agentpool.config.files import MINIMAL_FILE, SYSTEM_FILE, File, expand_home, find_file
from agentpool.config.settings import PoolSettings, RedisSettings, Settings, TenantOverrides
from agentpool.errors import ConfigError, nearest

__all__ = ["ClientTarget", "Loaded", "load", "load_client_target"]

DATA_DIR: KeyPath = ("data_dir",)
NAMESPACE: KeyPath = ("redis", "namespace")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings ready for use, the file they come from (None: no file), and what is odd but allowed."""

    settings: Settings
    path: Path | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientTarget:
    """Where a client finds Redis: at `url`, or (None) at the embedded server of the absolute `data_dir`."""

    url: str | None
    data_dir: str
    namespace: str
    warnings: tuple[str, ...]


def load(
    *,
    config_path: str | Path | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
    require_file: bool = True,
    cwd: str | Path | None = None,
) -> Loaded:
    """Read every source and return checked settings.

    Flags are named by setting (`redis_url`, `data_dir`, `pools.<name>.<key>`); `embedded` takes redis.url away. Raises
    ConfigError with every problem found, a line each.
    """
    folder = Path(cwd) if cwd is not None else Path.cwd()
    file = find_file(config_path, environ, folder)
    if file is None and require_file:
        raise ConfigError(_no_file())
    merged = _merge(file, flags or {}, environ)
    return _finish(merged, file, environ, folder)


def load_client_target(
    url: str | None = None,
    data_dir: str | Path | None = None,
    config: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: str | Path | None = None,
) -> ClientTarget:
    """Find Redis for a client, as the daemon of the same folder and environment would.

    An explicit url wins, then an explicit data_dir (its embedded server), AGENTPOOL_REDIS__URL, REDIS_URL and its
    parts, the file, the default data_dir. Pools are not looked at. Raises ConfigError when what is used is wrong, or
    the named config is absent.
    """
    folder = Path(cwd) if cwd is not None else Path.cwd()
    file, warnings = _find_client_file(config, environ, folder, is_needed=url is None and data_dir is None)
    layer = file.layer if file else Layer()
    from_environ = read_environment(environ, layer)
    entries = layer.entries | from_environ.entries
    warnings += layer.problems + from_environ.problems
    problems: list[str] = []
    if data_dir is not None:
        entries[DATA_DIR] = Entry(os.fspath(data_dir), "data_dir", is_text=True)
        entries.pop(REDIS_URL, None)
    elif url is None and REDIS_URL not in from_environ.entries:
        redis = read_redis_environment(environ)
        entries |= redis.entries
        problems += redis.problems
        warnings += redis.warnings
    if url is not None:
        entries[REDIS_URL] = Entry(url, "url", is_text=True)
    return _aim(entries, problems, warnings, environ, folder)


# -- the daemon's settings --------------------------------------------------------------------------------------


def _no_file() -> str:
    return (
        f"No configuration file: there is no --config, no ./agentpool.toml and no {SYSTEM_FILE}. "
        f"Write ./agentpool.toml, for example:\n\n{MINIMAL_FILE}"
    )


def _merge(file: File | None, flags: Mapping[str, object], environ: Mapping[str, str]) -> Layer:
    """Lay the sources over one another, the weakest first."""
    low = file.layer if file else Layer()
    high = read_environment(environ, low)
    top = read_flags(flags)
    pools = list(dict.fromkeys((*low.pools, *high.pools, *top.pools)))
    # A wrong REDIS_PORT does no harm where nobody asks for it.
    is_asked = not flags.get("embedded") and REDIS_URL not in high.entries and REDIS_URL not in top.entries
    redis = read_redis_environment(environ) if is_asked else Layer()
    layers = (read_flat_names(environ, pools), low, redis, high, top)
    merged = Layer(pools=pools)
    for layer in layers:
        merged.entries |= layer.entries
        merged.problems += layer.problems
        merged.warnings += layer.warnings
    if flags.get("embedded"):
        merged.entries.pop(REDIS_URL, None)
    return merged


def _finish(merged: Layer, file: File | None, environ: Mapping[str, str], folder: Path) -> Loaded:
    """Convert and check what won; raises ConfigError."""
    values, broken, problems = _convert_all(merged.entries)
    settings = _build(values, merged)
    findings = check(settings, broken)
    label = file.label if file else "settings"
    lines = {finding: _line(finding, merged, label) for finding in findings}
    problems = merged.problems + problems + [line for finding, line in lines.items() if not finding.is_warning]
    if not merged.pools:
        problems.append(f"{label}: pools: no pool is defined. Define one, for example:\n\n{MINIMAL_FILE}")
    if problems:
        raise ConfigError(*problems)
    settings = msgspec.structs.replace(
        settings,
        data_dir=_data_dir(settings.data_dir, environ, folder),
        app_dir=_absolute(settings.app_dir, environ, folder),
    )
    warnings = merged.warnings + [line for finding, line in lines.items() if finding.is_warning]
    return Loaded(settings, file.path if file else None, tuple(warnings))


def _convert_all(entries: Mapping[KeyPath, Entry]) -> tuple[dict[KeyPath, Any], set[KeyPath], list[str]]:
    """Return values by path, the paths whose value is of a wrong type, and a line for each of those."""
    values: dict[KeyPath, Any] = {}
    broken: set[KeyPath] = set()
    problems: list[str] = []
    for path, entry in entries.items():
        try:
            values[path] = convert(path, entry)
        except ValueError as error:
            broken.add(path)
            problems.append(f"{entry.source}: {error}")
    return values, broken, problems


def _build(values: Mapping[KeyPath, Any], merged: Layer) -> Settings:
    def under(*parent: str) -> dict[str, Any]:
        return {path[-1]: value for path, value in values.items() if path[:-1] == parent}

    sections: dict[str, Any] = {name: struct(**under(name)) for name, struct in SECTIONS.items()}
    tenants: dict[str, dict[str, TenantOverrides]] = {name: {} for name in merged.pools}
    for pool, tenant in merged.tenants:
        tenants[pool][tenant] = TenantOverrides(**under("pools", pool, TENANTS, tenant))
    tables = {name: PoolSettings(**under("pools", name), tenants=tenants[name]) for name in merged.pools}
    return Settings(**under(), **sections, pools=tables)


def _line(finding: Finding, merged: Layer, label: str) -> str:
    """Return a finding as one line that names the source to correct."""
    path = finding.path
    entry = merged.entries.get(path)
    line = f"{entry.source if entry else f'{label}: {dotted(path)}'}: {finding.message}"
    if entry is None and path[0] == "pools" and path[2:] == ("agents",):
        # A variable for a pool that is not in the file makes a new pool, which is mostly a slip of the pen.
        line += nearest(path[1], [pool for pool in merged.pools if pool != path[1]])
    return line


# -- a client's target ------------------------------------------------------------------------------------------


def _find_client_file(
    config: str | Path | None, environ: Mapping[str, str], folder: Path, *, is_needed: bool
) -> tuple[File | None, list[str]]:
    """Return the file, if any; where it only adds to an explicit address, its faults are warnings."""
    try:
        return find_file(config, environ, folder), []
    except ConfigError as error:
        if is_needed or config is not None:
            raise
        return None, [problem.splitlines()[0] for problem in error.problems]


def _aim(
    entries: Mapping[KeyPath, Entry],
    problems: list[str],
    warnings: list[str],
    environ: Mapping[str, str],
    folder: Path,
) -> ClientTarget:
    """Convert and check the three settings that a client needs; raises ConfigError."""
    used = {path: entries[path] for path in (REDIS_URL, NAMESPACE, DATA_DIR) if path in entries}
    values, _, wrong = _convert_all(used)
    redis = RedisSettings(url=values.get(REDIS_URL), namespace=values.get(NAMESPACE, ""))
    faults = [f"{used[finding.path].source}: {finding.message}" for finding in check_redis(redis)]
    if problems or wrong or faults:
        raise ConfigError(*problems, *wrong, *faults)
    return ClientTarget(
        redis.url, _data_dir(values.get(DATA_DIR, ""), environ, folder), redis.namespace, tuple(warnings)
    )


# -- folders ----------------------------------------------------------------------------------------------------


def _data_dir(given: str, environ: Mapping[str, str], folder: Path) -> str:
    if given:
        return _absolute(given, environ, folder)
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    base = state if os.path.isabs(state) else "~/.local/state"
    return _absolute(os.path.join(base, "agentpool"), environ, folder)


def _absolute(given: str, environ: Mapping[str, str], folder: Path) -> str:
    return os.path.abspath(folder / expand_home(given, environ))
