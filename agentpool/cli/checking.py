"""`agentpool-master check`: the configuration, the agent modules, the server; everything found, nothing changed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import msgspec

from agentpool.config import Loaded, Settings
from agentpool.errors import AgentPoolError, ConfigError
from agentpool.redis_server import find_binary, running_url
from agentpool.server_check import check_server

__all__ = ["Report", "check_everything", "print_findings"]

IMPORT_TIMEOUT_S = 60.0


class Report(msgspec.Struct):
    """What was found; `facts` are for information."""

    errors: list[str] = []
    warnings: list[str] = []
    facts: dict[str, object] = {}


def check_everything(load: Callable[[], Loaded]) -> Report:
    """Return all errors and warnings."""
    report = Report()
    try:
        loaded = load()
    except ConfigError as error:
        report.errors += error.problems
        return report
    report.warnings += loaded.warnings
    report.facts["config"] = str(loaded.path or "none: environment and flags only")
    report.facts["pools"] = sorted(loaded.settings.pools)
    _check_imports(loaded.settings, report)
    _check_redis(loaded.settings, report)
    return report


def _check_imports(settings: Settings, report: Report) -> None:
    """Import each pool's agents in a process of its own, as the master would."""
    for name, pool in settings.pools.items():
        command = [sys.executable, "-P", "-m", "agentpool_worker.preload", settings.app_dir, *pool.agents]
        if problem := _import_problem(command):
            report.errors.append(f'pool "{name}": {problem}')


def _import_problem(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return (
            f"importing its agents did not end within {IMPORT_TIMEOUT_S:g} s. "
            "Move what waits or serves out of the module's top level."
        )
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines() or [f"importing failed with status {done.returncode}"]
    return lines[-1]


def _check_redis(settings: Settings, report: Report) -> None:
    url = settings.redis.url or running_url(settings.data_dir)
    if url is None:
        _check_embedded(settings, report)
        return
    findings = check_server(url, settings.redis.connect_timeout, namespace=settings.redis.namespace)
    report.errors += findings.errors
    report.warnings += findings.warnings
    report.facts.update(findings.facts)


def _check_embedded(settings: Settings, report: Report) -> None:
    """The embedded server does not run now: is there one to start?"""
    try:
        binary = find_binary(settings.redis.binary)
        report.facts["redis"] = f"embedded, not running now: {binary}"
    except AgentPoolError as error:
        report.errors.append(str(error))
    if not shutil.which("redis-cli"):
        report.facts["redis-cli"] = "not on PATH; use: agentpool redis COMMAND"


def print_findings(report: Report, *, as_json: bool) -> None:
    """Print the report to stdout: one line a finding."""
    if as_json:
        print(json.dumps({"errors": report.errors, "warnings": report.warnings, "facts": report.facts}, default=str))
        return
    for name, value in report.facts.items():
        print(f"{name}: {value}")
    for kind, lines in (("error", report.errors), ("warning", report.warnings)):
        for line in lines:
            print(f"{kind}: {line}")
    if not report.errors:
        print("ok: no errors" + (f", {len(report.warnings)} warnings" if report.warnings else ""))
