"""What tests of tasks share: a pool of agents that tell when they ran, and how to look at what came of them."""

import json
from collections.abc import Iterable
from typing import Any

from support.master import Master

POOL = "developer_pool"
AGENTS = [
    f"task_agents:{name}"
    for name in (
        "Napper", "Poison", "Stubborn", "Blocker", "Flaky", "Patient", "LateStarter", "DiesAtStart", "Emitter",
        "Parent", "Deep", "Spender", "Shared",
    )
] + ["sample_agents:Counter"]  # fmt: skip


def settings(**more: Any) -> dict[str, dict[str, Any]]:
    """One pool with all agents and no scaling of its own."""
    return {POOL: {"agents": AGENTS, "scale_cooldown": 600.0, "worker_idle_timeout": 600.0, **more}}


def overlap(spans: Iterable[tuple[float, float]]) -> int:
    """How many spans there were at once, at most."""
    known = list(spans)
    steps = sorted([(began, 1) for began, _ in known] + [(ended, -1) for _, ended in known])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def audit_lines(master: Master, pool: str = POOL) -> list[dict[str, Any]]:
    """Every line of the audit's files."""
    files = sorted((master.data_dir / "audit" / pool).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
