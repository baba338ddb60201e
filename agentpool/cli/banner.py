"""What `agentpool-master` prints on a terminal once it runs: where Redis listens, the pools, what to try."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from agentpool.daemon import Daemon

__all__ = ["print_banner"]


def print_banner(daemon: Daemon) -> None:
    """Print it to stdout."""
    print(banner(daemon), flush=True)


def banner(daemon: Daemon) -> str:
    """Return the text."""
    settings = daemon.settings
    lines = ["", "agentpool-master is running.", "", f"  Redis     {_redis_line(daemon)}"]
    for name, pool in settings.pools.items():
        types = ", ".join(spec.rpartition(":")[2] for spec in pool.agents)
        size = f"{pool.min_workers} to {pool.max_workers} workers of {pool.agents_per_worker} agents"
        lines.append(f"  Pool      {name}: {size}; types: {types}")
    lines += ["", "Try, in another terminal:", ""]
    lines += [f"  {command}" for command in _commands(daemon)]
    lines += ["", "Ctrl-C drains and stops everything; a second Ctrl-C hurries.", ""]
    return "\n".join(lines)


def _redis_line(daemon: Daemon) -> str:
    if daemon.server:
        return f"{daemon.server.cli_hint}   (embedded {daemon.server.binary})"
    from agentpool.config import redact_url

    return f"redis-cli -u {redact_url(daemon.url)}"


def _commands(daemon: Daemon) -> list[str]:
    program = _program()
    where = _where(daemon)
    pool, settings = next(iter(daemon.settings.pools.items()))
    agent_type = settings.agents[0].rpartition(":")[2]
    return [
        f"{program} stats {where}",
        f"{program} spawn {pool} --type {agent_type} --count 15 {where}",
        f"{program} agents {pool} {where}",
        f"{program} run {pool} --type {agent_type} --input '{{}}' {where}",
        f"{program} redis ZREVRANGE pool:{pool}:processes 0 -1 WITHSCORES {where}",
        f"{program} doctor {where}",
    ]


def _program() -> str:
    """The operator's command, as it can be typed from here."""
    beside = Path(sys.argv[0]).with_name("agentpool")
    if not beside.exists():
        return "agentpool"
    return "agentpool" if shutil.which("agentpool") else shlex.quote(_short(beside))


def _short(path: str | Path) -> str:
    """The path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _where(daemon: Daemon) -> str:
    if daemon.server:
        return f"--data-dir {shlex.quote(_short(daemon.settings.data_dir))}"
    from agentpool.config import redact_url

    return f"--redis-url {shlex.quote(redact_url(daemon.url))}"
