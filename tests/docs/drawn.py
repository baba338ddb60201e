"""What docs/architecture.md takes from the code: drawn here, and compared with the page by a test."""

import inspect
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from agentpool.protocol.keys import Keys

__all__ = ["diagram", "key_rows"]

PLACEHOLDERS = {
    "pool": "<p>",
    "worker_id": "<w>",
    "master_id": "<m>",
    "name": "<n>",
    "type": "<type>",
    "tenant": "<t>",
    "agent_id": "<p>/<n>",
    "task_id": "<p>/<id>",
    "client_id": "<c>",
    "lane": "<lane>",
    "id": "<id>",
    "digest": "<digest>",
}


def diagram(moves: Mapping[StrEnum, Iterable[StrEnum]]) -> str:
    """A table of states as a mermaid diagram, in the order in which the states are declared."""
    order = list(type(next(iter(moves))))
    lines = ["stateDiagram-v2", f"    [*] --> {order[0]}"]
    for state in order:
        targets = sorted(moves[state], key=order.index)
        lines += [f"    {state} --> {target}" for target in targets] or [f"    {state} --> [*]"]
    return "\n".join(lines)


def key_rows() -> list[str]:
    """Each key and channel as a row of a table: name, Redis type, content, from its docstring."""
    rows = []
    keys = Keys()
    for method_name, method in vars(Keys).items():
        if method_name.startswith("_") or not inspect.isfunction(method):
            continue
        arguments = [PLACEHOLDERS[name] for name in list(inspect.signature(method).parameters)[1:]]
        text = " ".join((method.__doc__ or "").split()).rstrip(".")
        kind, content = "channel", text
        if not method_name.endswith("_channel"):
            kind, content = re.split(": | of ", text, maxsplit=1)
        rows.append(f"| `{method(keys, *arguments)}` | {kind.lower()} | {content[0].lower() + content[1:]} |")
    return rows
