"""Is this Redis fit for agentpool? Asked before the daemon starts, by `agentpool-master check` and by doctor.

Everything is asked with commands that change nothing. A server that withholds an answer (an ACL, a managed service)
yields a warning; one that does not answer at all yields an error, never an exception.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from agentpool.config import redact_url, url_problem
from agentpool.protocol.keys import Keys

__all__ = ["DURABILITY", "Findings", "check_server", "judge"]

T = TypeVar("T")

VERSION_MIN = (7, 0)
SETTINGS = ("appendfsync", "save", "no-appendfsync-on-rewrite")

DURABILITY = {
    "always": "an acknowledged write is on the disk: only the loss of the disk loses it",
    "everysec": "a kill of the server loses nothing while its disk keeps up; a failure of its machine loses up to 2 s",
    "no": "a kill of the server loses nothing; a failure of its machine loses up to 30 s, as the kernel writes",
    "snapshots": "every end of the server without a save loses what came since the last snapshot",
    "none": "every end of the server loses everything",
}
"""What acknowledged writes survive, by `appendfsync`, or without an append-only file by whether there are snapshots."""


@dataclass(slots=True)
class Findings:
    """What was found, a line each: errors forbid a start, warnings do not; facts are what the server said.

    Facts, as far as known: product, version, role, cluster, maxmemory_bytes, maxmemory_policy, appendonly, appendfsync,
    fsync_pauses (no-appendfsync-on-rewrite), save, durability (what acknowledged writes survive, in words).
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


def check_server(url: str, timeout: float = 5.0, *, namespace: str | None = None) -> Findings:
    """Ask the server at `url`; each question waits at most `timeout` seconds. Never raises for what the server does.

    With a namespace (which may be empty), a write that the user's ACL refuses there is an error. Without one it is not
    known which keys the user needs, and the refusal is a warning.
    """
    findings = Findings()
    if problem := url_problem(url):
        findings.errors.append(f"Redis URL: {problem}.")
        return findings
    client = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=timeout,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        _ask(client, findings, namespace)
    except (RedisError, OSError, ValueError) as error:
        findings.errors.append(_failure(error, redact_url(url), timeout))
    finally:
        client.close()
    return findings


def judge(facts: Mapping[str, object]) -> Findings:
    """Return errors and warnings for what a server said of itself. Pure; an absent fact is passed over."""
    findings = Findings(facts=dict(facts))
    _judge_version(findings)
    _judge_role(findings)
    _judge_memory(findings)
    _judge_persistence(findings)
    return findings


# -- asking -----------------------------------------------------------------------------------------------------


def _ask(client: Any, findings: Findings, namespace: str | None) -> None:
    _permitted(client.ping, findings, "")
    info = _permitted(client.info, findings, "INFO: version, role, memory and persistence")
    config = _permitted(lambda: client.config_get(*SETTINGS), findings, f"CONFIG: {', '.join(SETTINGS)}")
    judged = judge(_facts(info or {}, config or {}))
    findings.facts = judged.facts
    findings.errors += judged.errors
    findings.warnings += judged.warnings
    if findings.facts.get("role") != "replica" and not findings.facts.get("cluster"):
        _try_write(client, findings, namespace)


def _permitted(question: Callable[[], T], findings: Findings, subject: str) -> T | None:
    """Return the answer, or None with a warning when the server will not say."""
    try:
        return question()
    except (AuthenticationError, BusyLoadingError):
        raise
    except ResponseError as error:
        # Managed services remove CONFIG; they then answer "unknown command", which is as good as a refusal.
        if not isinstance(error, NoPermissionError) and "unknown command" not in str(error).lower():
            raise
        if subject:
            findings.warnings.append(
                f"Could not read {subject}: the server does not permit it. "
                "Allow the command in the user's ACL, or check these settings by hand."
            )
        return None


def _facts(info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, object]:
    """Return the facts in INFO's and CONFIG's answers, in our words."""
    facts: dict[str, object] = {}
    version = info.get("valkey_version") or info.get("redis_version")
    if version:
        facts["product"] = "valkey" if "valkey_version" in info else "redis"
        facts["version"] = str(version)
    if "role" in info:
        facts["role"] = "replica" if info["role"] == "slave" else info["role"]
    if "cluster_enabled" in info:
        facts["cluster"] = bool(info["cluster_enabled"])
    if "maxmemory" in info:
        facts["maxmemory_bytes"] = int(info["maxmemory"])
    if "aof_enabled" in info:
        facts["appendonly"] = bool(info["aof_enabled"])
    for name, source in (("maxmemory_policy", info), ("appendfsync", config), ("save", config)):
        if name in source:
            facts[name] = source[name]
    if "no-appendfsync-on-rewrite" in config:
        facts["fsync_pauses"] = config["no-appendfsync-on-rewrite"] == "yes"
    return facts


def _try_write(client: Any, findings: Findings, namespace: str | None) -> None:
    """Send a write that changes nothing, which a full or failing server refuses all the same."""
    key = Keys(namespace or "").install()
    try:
        # Setting an empty range neither makes a key nor changes one.
        client.setrange(key, 0, "")
    except NoPermissionError:
        lines = findings.warnings if namespace is None else findings.errors
        lines.append(
            f"Could not try a write: the user's ACL does not permit SETRANGE on {key}. "
            "Make sure that it permits reading and writing all keys of agentpool."
        )
    except ReadOnlyError:
        findings.errors.append("The server takes no writes. Point the URL at the primary.")
    except OutOfMemoryError:
        findings.warnings.append(
            "The server is out of memory: new work is refused, and what it has goes on and makes room. "
            "Raise maxmemory, or remove what else is stored there."
        )
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            findings.errors.append(f"The server refuses writes: {_one_line(error)} Repair that on the server.")


def _failure(error: Exception, place: str, timeout: float) -> str:
    """Return a line for a server that cannot be asked, saying what to do next."""
    text = str(error)
    if isinstance(error, AuthenticationError) or any(word in text for word in ("WRONGPASS", "NOAUTH")):
        return f"Redis at {place} refused the login. Check the user and password in the URL."
    if isinstance(error, BusyLoadingError) or "LOADING" in text:
        return f"Redis at {place} is still loading its data. Try again when it is done."
    if isinstance(error, TimeoutError):
        return f"Redis at {place} did not answer within {timeout:g} s. Check the address, firewall and load."
    return f"Redis at {place} cannot be used: {_one_line(error)} Is it running, and is the address right?"


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split()).rstrip(".") + "."


# -- judging ----------------------------------------------------------------------------------------------------


def _judge_version(findings: Findings) -> None:
    version = findings.facts.get("version")
    if version is None:
        return
    numbers = tuple(int(word) for word in str(version).split(".")[:2] if word.isdigit())
    if numbers < VERSION_MIN:
        findings.errors.append(
            f"The server is {findings.facts.get('product')} {version}; agentpool needs Redis 7 or Valkey 7.2 or newer. "
            "Upgrade it, or leave redis.url out to use the embedded server."
        )


def _judge_role(findings: Findings) -> None:
    if findings.facts.get("role") == "replica":
        findings.errors.append("The server is a replica, which takes no writes. Point the URL at its primary.")
    if findings.facts.get("role") == "sentinel":
        findings.errors.append("This is a Sentinel, which stores no data. Point the URL at the primary it watches.")
    if findings.facts.get("cluster"):
        findings.errors.append(
            "The server runs in cluster mode, which is not supported yet. Use one with cluster-enabled no."
        )


def _judge_memory(findings: Findings) -> None:
    """With a bound on memory, only `noeviction` is safe: any other policy deletes live agents, tasks and locks."""
    policy = str(findings.facts.get("maxmemory_policy", "noeviction"))
    if not findings.facts.get("maxmemory_bytes") or policy == "noeviction":
        return
    advice = "Run: CONFIG SET maxmemory-policy noeviction, and set it in the server's configuration."
    if policy.startswith("allkeys-"):
        findings.errors.append(f"maxmemory-policy is {policy}: Redis may delete live agents and tasks. {advice}")
    else:
        findings.warnings.append(
            f"maxmemory-policy is {policy}: Redis may delete what has a time to live (locks, results) early. {advice}"
        )


def _judge_persistence(findings: Findings) -> None:
    facts = findings.facts
    if mode := _mode(facts):
        facts["durability"] = DURABILITY[mode]
    if facts.get("fsync_pauses") and mode in ("always", "everysec"):
        findings.warnings.append(
            f"no-appendfsync-on-rewrite is yes: while the server rewrites its file, appendfsync {mode} does not hold, "
            "and a failure of its machine loses up to 30 s. "
            "Run: CONFIG SET no-appendfsync-on-rewrite no, and set it in the server's configuration."
        )
    if facts.get("appendonly") is False:
        lost = "everything" if facts.get("save") == "" else "everything since the last snapshot"
        findings.warnings.append(
            f"appendonly is off: when the server stops without saving, {lost} is lost: agents, waiting tasks, results. "
            "Run: CONFIG SET appendonly yes, and set it in the server's configuration."
        )
    elif facts.get("appendfsync") == "no":
        findings.warnings.append(
            "appendfsync is no: when its machine fails, about the last 30 s of agents, tasks and results are lost. "
            "Run: CONFIG SET appendfsync everysec, and set it in the server's configuration."
        )


def _mode(facts: Mapping[str, object]) -> str:
    """Return the key of `DURABILITY`, or '' where it is not known."""
    if facts.get("appendonly") is False:
        return "none" if facts.get("save") == "" else "snapshots"
    fsync = str(facts.get("appendfsync", ""))
    return fsync if facts.get("appendonly") and fsync in DURABILITY else ""
